-- Renews the leases of jobs that are still this router's: a router that woke up too late can renew nothing.
-- KEYS and ARGV[1]: prelude.lua. ARGV: 2 instance, 3 lease_ms, then entries.
-- Out: {now_us, entry...}: the entries that are not this router's any more.
local instance, lease_ms = ARGV[2], tonumber(ARGV[3])
local now = now_us()
local expires_ms = math.floor(now / 1000) + lease_ms
local out = {now}
open_although_full()
for i = 4, #ARGV do
  local held = redis.call('HMGET', job_key(ARGV[i]), 'owner', 'stage')
  if held[1] == instance and (held[2] == 'claim' or held[2] == 'encode') then
    redis.call('ZADD', ENCODE, expires_ms, ARGV[i])
  elseif held[1] == instance and held[2] == 'decode' then
    redis.call('ZADD', DECODE, expires_ms, ARGV[i])
  else
    out[#out + 1] = ARGV[i]
  end
end
return out
