-- Finds claimed jobs that nobody answers for (no lease, no retry) and lets them be taken; removes idle dead consumers.
-- KEYS and ARGV[1]: prelude.lua. ARGV: 2 instance, 3 idle_ms, 4 count, 5 cursor of lane 0, 6 cursor of lane 1 ("-": start).
-- Out: {recovered, next cursor 0, next cursor 1}; a cursor is "-" when that lane was seen to its end.
local instance, idle_ms, count = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])
local now_ms = math.floor(now_us() / 1000)
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
return {recovered, cursors['0'], cursors['1']}
