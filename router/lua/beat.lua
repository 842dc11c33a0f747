-- Says that this router lives, what may wait at most (for submit.lua) and, while it has a pair of workers, which model
-- they serve; makes the group where it is missing; keeps the cancel and control streams short.
-- KEYS and ARGV[1]: prelude.lua. ARGV: 2 instance, 3 alive_ms, 4 cancel_kept_ms, 5 pair hash ("": no pair), 6 model,
-- 7 token counts ("64,144,256"), 8 jobs that may wait, 9 bytes that may wait (0: no limit).
-- Out: {now_us, milliseconds since a router last had a pair (-1: never)}.
local now = now_us()
local now_ms = math.floor(now / 1000)
open_although_full()
redis.call('ZADD', ROUTERS, now_ms + tonumber(ARGV[3]), ARGV[2])
redis.call('ZREMRANGEBYSCORE', ROUTERS, '-inf', now_ms)
local paired_ms = tonumber(redis.call('HGET', MODEL, 'updated_ms') or '')
redis.call('HSET', MODEL, 'max_waiting', ARGV[8], 'max_waiting_bytes', ARGV[9])
if ARGV[5] ~= '' then
  redis.call('HSET', MODEL, 'pair_hash', ARGV[5], 'model', ARGV[6], 'token_counts', ARGV[7], 'updated_ms', now_ms)
  paired_ms = now_ms
end
-- The group is there before the first worker: who watches it (an autoscaler that starts one) finds it.
for _, key in pairs(JOBS) do
  local found = false
  for _, group in ipairs(redis.pcall('XINFO', 'GROUPS', key)) do found = found or group[2] == 'router' end
  if not found then redis.pcall('XGROUP', 'CREATE', key, 'router', '0', 'MKSTREAM') end
end
redis.call('XTRIM', CANCEL, 'MINID', tostring(now_ms - tonumber(ARGV[4])) .. '-0')
redis.pcall('XTRIM', PREFIX .. 'control', 'MINID', tostring(now_ms - tonumber(ARGV[4])) .. '-0')
return {now, paired_ms and math.max(0, now_ms - paired_ms) or -1}
