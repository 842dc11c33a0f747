-- Finds claimed jobs that nobody answers for (no lease, no retry) and lets them be taken; removes idle dead consumers,
-- results that nobody needs any more, letters past their bound, and the books of images whose dead letters are gone.
-- KEYS and ARGV[1]: prelude.lua. ARGV: 2 instance, 3 idle_ms, 4 count, 5 cursor of lane 0, 6 cursor of lane 1 ("-": start),
-- 7 results_keep_ms, 8 results_max, 9 dead_max.
-- Out: {recovered, next cursor 0, next cursor 1, dead letters dropped since the last sweep of any router}; a cursor is "-"
-- when that lane was seen to its end.
local instance, idle_ms, count = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local now_ms = math.floor(now_us() / 1000)
local results_keep_ms, results_max = tonumber(ARGV[7]), tonumber(ARGV[8])
local TRIMMED_MAX, LETTERS_CHECKED, LETTERS_DROPPED = 10000, 100, 100
dead_max = tonumber(ARGV[9])
local recovered, cursors = 0, {['0'] = '-', ['1'] = '-'}
for lane, stream in pairs(JOBS) do
  local start = lane == '0' and ARGV[5] or ARGV[6]
  local pending = redis.pcall('XPENDING', stream, 'router', 'IDLE', idle_ms, start, '+', count)
  if not pending.err then
    for _, item in ipairs(pending) do
      local entry = lane .. ':' .. item[1]
      if not redis.call('ZSCORE', ENCODE, entry) and not redis.call('ZSCORE', DECODE, entry) and
         not redis.call('ZSCORE', RETRY, entry) then
        redis.call('ZADD', RETRY, now_ms, entry)
        recovered = recovered + 1
      end
    end
    if #pending == count then cursors[lane] = '(' .. pending[#pending][1] end
    -- A consumer that still owns entries stays: removing it would take them out of the group's books.
    for _, consumer in ipairs(redis.call('XINFO', 'CONSUMERS', stream, 'router')) do
      local name, owns, idle = consumer[2], consumer[4], consumer[6]
      if owns == 0 and idle >= idle_ms and name ~= instance and not redis.call('ZSCORE', ROUTERS, name) then
        redis.call('XGROUP', 'DELCONSUMER', stream, 'router', name)
      end
    end
  end
end
-- The first result that some consumer group has not read or not acknowledged yet; nil where there is no group.
local function first_needed()
  local groups = redis.pcall('XINFO', 'GROUPS', RESULTS)
  local first = nil
  for _, group in ipairs(groups.err and {} or groups) do
    local name, pending, last = group[2], group[6], group[8]
    local ms, seq = string.match(last, '^(%d+)%-(%d+)$')
    seq = seq + 1
    if pending > 0 then
      local oldest = redis.call('XPENDING', RESULTS, name)[2]
      ms, seq = string.match(oldest, '^(%d+)%-(%d+)$')
    end
    local id = {tonumber(ms), tonumber(seq)}
    if not first or id[1] < first[1] or (id[1] == first[1] and id[2] < first[2]) then first = id end
  end
  return first
end

-- Results go when their time is over, and, once the stream is full, when every group has acknowledged them; never what
-- a group still needs.
local function trim_results()
  local length = redis.call('XLEN', RESULTS)
  if length == 0 then return end
  local needed, past = first_needed(), {now_ms - results_keep_ms, 0}
  local to = past
  if needed and (length >= results_max or needed[1] < past[1]) then to = needed end
  local id = string.format('%.0f-%.0f', to[1], to[2])
  if to[1] <= 0 then return end
  if length <= TRIMMED_MAX then
    redis.call('XTRIM', RESULTS, 'MINID', id)
  else
    redis.call('XTRIM', RESULTS, 'MINID', '~', id, 'LIMIT', TRIMMED_MAX)
  end
end

-- Whoever deletes a dead letter may leave the books alone: they are checked here, some letters at a time.
local function check_dead_images()
  if redis.call('TYPE', DEAD_IMAGES).ok ~= 'hash' then return end
  if redis.call('XLEN', DEAD) == 0 then return redis.call('DEL', DEAD_IMAGES) end
  local some = redis.call('HRANDFIELD', DEAD_IMAGES, LETTERS_CHECKED, 'WITHVALUES')
  for i = 1, #some, 2 do
    if some[i] ~= 'sum' and not redis.call('XRANGE', DEAD, some[i], some[i], 'COUNT', 1)[1] then
      free_image(some[i], some[i + 1])
    end
  end
end

trim_results()
bound_letters(LETTERS_DROPPED)
check_dead_images()
local dropped = redis.pcall('GETDEL', DEAD_DROPPED)
return {recovered, cursors['0'], cursors['1'], type(dropped) == 'string' and tonumber(dropped) or 0}
