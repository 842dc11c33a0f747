-- Says that this router lives and, while it has a pair of workers, which model they serve; keeps the cancel and control streams
-- short.
-- KEYS and ARGV[1]: prelude.lua. ARGV: 2 instance, 3 alive_ms, 4 cancel_kept_ms, 5 pair hash ("": no pair), 6 model,
-- 7 token counts ("64,144,256").
-- Out: now_us.
local now = now_us()
local now_ms = math.floor(now / 1000)
open_although_full()
redis.call('ZADD', ROUTERS, now_ms + tonumber(ARGV[3]), ARGV[2])
redis.call('ZREMRANGEBYSCORE', ROUTERS, '-inf', now_ms)
if ARGV[5] ~= '' then
  redis.call('HSET', MODEL, 'pair_hash', ARGV[5], 'model', ARGV[6], 'token_counts', ARGV[7], 'updated_ms', now_ms)
end
redis.call('XTRIM', CANCEL, 'MINID', tostring(now_ms - tonumber(ARGV[4])) .. '-0')
redis.pcall('XTRIM', PREFIX .. 'control', 'MINID', tostring(now_ms - tonumber(ARGV[4])) .. '-0')
return now
