-- Published: adds one job, unless too many wait. Stands alone; any client may EVAL it (a raw XADD works too, unlimited).
-- KEYS: 1 tf:{Q}:jobs:0, 2 tf:{Q}:jobs:1, 3 tf:{Q}:lease:encode, 4 tf:{Q}:lease:decode, 5 tf:{Q}:model (may be left
-- out: then the queue's own limits do not count). ARGV: 1 lane (0 interactive, 1 batch), 2 jobs that may wait, 3 bytes
-- that may wait (0: the queue's own limit; the smaller of both counts), then field, value...
-- Out: the entry's stream id; or an error that begins with "queue_full" (nothing was added) or with "invalid_argument".
local lane, waiting_max, bytes_max = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if #KEYS < 4 or #KEYS > 5 or (lane ~= '0' and lane ~= '1') or not waiting_max or not bytes_max or #ARGV < 5 or #ARGV % 2 == 0 or
   #ARGV > 131 then
  return redis.error_reply('invalid_argument submit.lua takes 4 or 5 keys, lane, max_waiting, max_waiting_bytes and 1 to 64 ' ..
                           'pairs of field and value')
end
for i, wanted in ipairs({'stream', 'stream', 'zset', 'zset', 'hash'}) do
  local found = KEYS[i] and redis.call('TYPE', KEYS[i]).ok or 'none'
  if found ~= wanted and found ~= 'none' then
    return redis.error_reply('invalid_argument ' .. KEYS[i] .. ' holds a ' .. found .. ', not a ' .. wanted)
  end
end
-- 0 stands for none.
local function smaller(a, b)
  if a <= 0 or b <= 0 then return math.max(a, b) end
  return math.min(a, b)
end
if KEYS[5] then
  local own = redis.call('HMGET', KEYS[5], 'max_waiting', 'max_waiting_bytes')
  waiting_max = smaller(waiting_max, tonumber(own[1]) or 0)
  bytes_max = smaller(bytes_max, tonumber(own[2]) or 0)
end
if waiting_max > 0 then
  local t = redis.call('TIME')
  local live = '(' .. (tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000))
  local waiting = redis.call('XLEN', KEYS[1]) + redis.call('XLEN', KEYS[2]) -
                  redis.call('ZCOUNT', KEYS[3], live, '+inf') - redis.call('ZCOUNT', KEYS[4], live, '+inf')
  if waiting >= waiting_max then
    return redis.error_reply('queue_full ' .. waiting .. ' jobs are waiting, the limit is ' .. waiting_max)
  end
end
if bytes_max > 0 then
  -- Redis's own estimate of both streams; it needs no counter that could drift from what is there.
  local bytes = (redis.call('MEMORY', 'USAGE', KEYS[1]) or 0) + (redis.call('MEMORY', 'USAGE', KEYS[2]) or 0)
  for i = 4, #ARGV do bytes = bytes + #ARGV[i] end
  if bytes > bytes_max then
    return redis.error_reply('queue_full the queue holds ' .. bytes .. ' bytes with this job, the limit is ' .. bytes_max)
  end
end
local fields = {}
for i = 4, #ARGV do fields[#fields + 1] = ARGV[i] end
return redis.call('XADD', KEYS[tonumber(lane) + 1], '*', unpack(fields))
