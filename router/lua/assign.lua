-- Records the assignments of a batch of claimed jobs: each is a new attempt, with its N, its reason and a fresh lease.
-- KEYS and ARGV[1]: prelude.lua. ARGV: 2 instance, 3 lease_ms, 4 the load that decided (JSON), then nine a job: entry, n,
-- reason, requested, uri, reply, trace, encoder, llm (instances). What a commit by any router needs is kept in the job's
-- hash. Assignments are counted by N, in tens of seconds, for what `publish` tells.
-- Out: {now_us, attempt...} in the same order; attempt 0: the lease is no longer this router's, don't send the job.
local instance, lease_ms = ARGV[2], tonumber(ARGV[3])
local now = now_us()
local out, assigned = {now}, {}
open_although_full()
for i = 5, #ARGV, 9 do
  local entry = ARGV[i]
  local key = job_key(entry)
  local held = redis.call('HMGET', key, 'owner', 'stage')
  local attempt = 0
  if held[1] == instance and (held[2] == 'claim' or held[2] == 'encode') then
    redis.call('ZADD', ENCODE, math.floor(now / 1000) + lease_ms, entry)
    attempt = redis.call('HINCRBY', key, 'attempt', 1)
    redis.call('HSET', key, 'stage', 'encode', 'n', ARGV[i + 1], 'reason', ARGV[i + 2], 'requested', ARGV[i + 3], 'uri',
               ARGV[i + 4], 'reply', ARGV[i + 5], 'trace', ARGV[i + 6], 'encoder', ARGV[i + 7], 'llm', ARGV[i + 8], 'load', ARGV[4])
    assigned[ARGV[i + 1]] = (assigned[ARGV[i + 1]] or 0) + 1
  end
  out[#out + 1] = attempt
end
local counted = assigned_key(math.floor(now / 1000))
for n, jobs in pairs(assigned) do redis.pcall('HINCRBY', counted, n, jobs) end
redis.pcall('EXPIRE', counted, 90)
return out
