-- Hands jobs back that this router claimed, so that any router takes them at once; it costs them no attempt.
-- KEYS and ARGV[1]: prelude.lua. ARGV: 2 instance, 3 delay_ms, 4 "leave" (the router goes: it is taken off the list, and
-- its consumers where they own nothing) or "stay", then entries.
-- Out: how many were handed back.
local instance, delay_ms, leaving = ARGV[2], tonumber(ARGV[3]), ARGV[4] == 'leave'
local due_ms = math.floor(now_us() / 1000) + delay_ms
local released = 0
open_although_full()
for i = 5, #ARGV do
  local entry = ARGV[i]
  if redis.call('HGET', job_key(entry), 'owner') == instance then
    redis.call('ZADD', RETRY, due_ms, entry)
    redis.call('ZREM', ENCODE, entry)
    redis.call('ZREM', DECODE, entry)
    redis.call('HSET', job_key(entry), 'owner', '', 'stage', 'retry')
    released = released + 1
  end
end
if leaving then
  redis.call('ZREM', ROUTERS, instance)
  for _, stream in pairs(JOBS) do
    local held = redis.pcall('XPENDING', stream, 'router', '-', '+', 1, instance)
    if not held.err and #held == 0 then redis.pcall('XGROUP', 'DELCONSUMER', stream, 'router', instance) end
  end
end
return released
