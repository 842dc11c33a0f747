-- Takes jobs for one router: expired leases, due retries, then new entries of both lanes by weight; each gets a lease.
-- KEYS and ARGV[1]: prelude.lua. ARGV: 2 instance, 3 count (0: load only), 4 lease_ms, 5 bytes_max, 6 turn, 7 weight of
-- lane 0 against 1, 8 results_max, 9 dedupe_ms, 10 takeovers_max, 11 done_max (entries ended here at most), 12 "1": bring
-- the shared policy state, 13 dead_image_bytes_max, 14 dead_max.
-- Out: {now_us, {numbers}, {{entry, attempt, failures, n, reason, suspect, fields}...}, policy state (or ""),
-- {{pace, remaining, finish_ms}...}}; numbers: XLEN 0, XLEN 1, live leases encode, decode, XLEN results, retries, entries
-- ended here: duplicates, in dead letters; turn, jobs that ever arrived, 1 where a client waits for workers. A pace that nobody keeps has "" and "".
local instance, count, lease_ms, bytes_max = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local turn, weight, results_max, dedupe_ms = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8]), ARGV[9]
local takeovers_max, ended_max = tonumber(ARGV[10]), tonumber(ARGV[11])
dead_image_bytes_max, dead_max = tonumber(ARGV[13]), tonumber(ARGV[14])
local now = now_us()
local now_ms = math.floor(now / 1000)
local out, bytes, ended, duplicates, dead, paces = {}, 0, 0, 0, 0, {}

-- Groups start at 0: jobs that were added before the first router count too.
local function with_group(lane, ...)
  local reply = redis.pcall(...)
  if type(reply) == 'table' and reply.err and string.find(reply.err, '^NOGROUP') then
    redis.call('XGROUP', 'CREATE', JOBS[lane], 'router', '0', 'MKSTREAM')
    reply = redis.pcall(...)
  end
  return reply
end

-- Where the entry's job ends at once, ends it and says true.
local function ends_now(entry, lane, sid, id, fields, failures)
  local done = get(done_key(entry, sid, id))
  if done then
    end_duplicate(entry, lane, sid, id, done, field(fields, 'reply'))
    duplicates = duplicates + 1
  elseif redis.call('EXISTS', PREFIX .. 'cancelled:' .. id) == 1 then
    bury(entry, lane, sid, id, fields, 'cancelled', 'cancelled by request', failures, dedupe_ms)
    dead = dead + 1
  else
    return false
  end
  ended = ended + 1
  return true
end

-- Once for each pace among the jobs taken: what its run says of itself.
local function add_pace(name)
  if not is_name(name) or paces[name] then return end
  local found = redis.pcall('HMGET', PREFIX .. 'pace:' .. name, 'remaining', 'finish_ms')
  paces[name] = true
  paces[#paces + 1] = {name, not found.err and found[1] or '', not found.err and found[2] or ''}
end

local function take(entry, id, fields, job)
  redis.call('ZREM', DECODE, entry)
  redis.call('ZREM', RETRY, entry)
  redis.call('ZADD', ENCODE, now_ms + lease_ms, entry)
  redis.call('HSET', job_key(entry), 'owner', instance, 'stage', 'claim', 'id', id, 'takeovers', job.takeovers)
  for i = 2, #fields, 2 do bytes = bytes + #fields[i] end
  add_pace(field(fields, 'pace'))
  out[#out + 1] = {entry, job.attempt, job.failures, job.n, job.reason, job.suspect, fields}
end

local function read_job(entry)
  local h = redis.call('HMGET', job_key(entry), 'id', 'attempt', 'failures', 'n', 'reason', 'suspect', 'takeovers', 'uri',
                       'reply')
  return {id = h[1], attempt = tonumber(h[2]) or 0, failures = tonumber(h[3]) or 0, n = tonumber(h[4]) or 0,
          reason = h[5] or '', suspect = tonumber(h[6]) or 0, takeovers = tonumber(h[7]) or 0, uri = h[8], reply = h[9]}
end

-- The entry is gone from the stream: what is known of its job ends as entry_lost.
local function end_lost(entry, lane, sid, job)
  ended = ended + 1
  if not job.id or get(done_key(entry, sid, job.id)) then return forget(entry, lane, sid) end
  local known = {}
  if job.uri and #job.uri > 0 then known = {'uri', job.uri} end
  if job.reply and #job.reply > 0 then known[#known + 1] = 'reply'; known[#known + 1] = job.reply end
  bury(entry, lane, sid, job.id, known, 'entry_lost', 'the queue entry ' .. entry .. ' vanished from its stream',
       job.failures, dedupe_ms)
  dead = dead + 1
end

-- A job that some router had before: its lease ran out (that router died), or its backoff is over.
local function recover(entry, takeover)
  local lane, sid = split(entry)
  if not lane then
    for _, key in ipairs({ENCODE, DECODE, RETRY}) do redis.call('ZREM', key, entry) end
    return
  end
  local job, fields = read_job(entry), read_entry(lane, sid)
  if not fields then return end_lost(entry, lane, sid, job) end
  local id = job.id or id_of(sid, fields)
  if ends_now(entry, lane, sid, id, fields, job.failures) then return end
  if takeover then job.takeovers = job.takeovers + 1 end
  if job.takeovers > takeovers_max then
    ended, dead = ended + 1, dead + 1
    return bury(entry, lane, sid, id, fields, 'internal', 'routers that held this job died ' .. takeovers_max .. ' times',
                job.failures, dedupe_ms)
  end
  local claimed = with_group(lane, 'XCLAIM', JOBS[lane], 'router', instance, 0, sid, 'FORCE', 'JUSTID')
  if claimed.err then return end
  take(entry, id, fields, job)
end

local function recover_from(key, takeover)
  if #out >= count or bytes >= bytes_max or ended >= ended_max then return end
  for _, entry in ipairs(redis.call('ZRANGEBYSCORE', key, '-inf', now_ms, 'LIMIT', 0, count - #out)) do
    if bytes >= bytes_max or ended >= ended_max then return end
    recover(entry, takeover)
  end
end

-- One new entry of a lane; false where there is none. One at a time: entries carry images, and bytes are bounded.
local function take_new(lane)
  local reply = with_group(lane, 'XREADGROUP', 'GROUP', 'router', instance, 'COUNT', 1, 'STREAMS', JOBS[lane], '>')
  if not reply or reply.err or not reply[1] or not reply[1][2][1] then return false end
  local sid, fields = reply[1][2][1][1], reply[1][2][1][2]
  local entry = lane .. ':' .. sid
  local job = read_job(entry)
  -- A group that was made anew delivers what others still hold: that stays theirs.
  if job.id and (redis.call('ZSCORE', ENCODE, entry) or redis.call('ZSCORE', DECODE, entry) or
                 redis.call('ZSCORE', RETRY, entry)) then
    ended = ended + 1
    return true
  end
  local id = job.id or id_of(sid, fields)
  if not ends_now(entry, lane, sid, id, fields, job.failures) then take(entry, id, fields, job) end
  return true
end

open_although_full()
local results_length = redis.call('XLEN', RESULTS)
if results_length >= results_max then count = 0 end
recover_from(ENCODE, true)
recover_from(DECODE, true)
recover_from(RETRY, false)
local empty = {}
while #out < count and bytes < bytes_max and ended < ended_max and not (empty['0'] and empty['1']) do
  local lane = turn % (weight + 1) < weight and '0' or '1'
  if empty[lane] then lane = lane == '0' and '1' or '0' end
  if take_new(lane) then turn = turn + 1 else empty[lane] = true end
end

local in_0, in_1 = redis.call('XLEN', JOBS['0']), redis.call('XLEN', JOBS['1'])
local arrived = in_0 + in_1 + (tonumber(get(PREFIX .. 'ended')) or 0)
return {now, {in_0, in_1, redis.call('ZCOUNT', ENCODE, '(' .. now_ms, '+inf'),
              redis.call('ZCOUNT', DECODE, '(' .. now_ms, '+inf'), results_length, redis.call('ZCARD', RETRY), duplicates,
              dead, turn % (weight + 1), arrived, redis.call('EXISTS', PREFIX .. 'called')}, out, ARGV[12] == '1' and get(PREFIX .. 'policy') or '', paces}
