-- Moves jobs from encode to decode, once the LLM has acknowledged their tensors.
-- KEYS and ARGV[1]: prelude.lua. ARGV: 2 instance, 3 lease_ms, then two a job: entry, attempt.
-- Out: {1 or 0...}; 0: not this router's any more, or an old attempt: nothing was changed.
local instance, lease_ms = ARGV[2], tonumber(ARGV[3])
local expires_ms = math.floor(now_us() / 1000) + lease_ms
local out = {}
open_although_full()
for i = 4, #ARGV, 2 do
  local entry = ARGV[i]
  local held = redis.call('HMGET', job_key(entry), 'owner', 'attempt', 'stage')
  local moved = 0
  if held[1] == instance and held[2] == ARGV[i + 1] and (held[3] == 'encode' or held[3] == 'decode') then
    redis.call('ZADD', DECODE, expires_ms, entry)
    redis.call('ZREM', ENCODE, entry)
    redis.call('HSET', job_key(entry), 'stage', 'decode')
    moved = 1
  end
  out[#out + 1] = moved
end
return out
