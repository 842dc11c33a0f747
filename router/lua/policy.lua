-- Replaces the shared policy state, where it is still the one that the new state was made from: of routers that look at the
-- load at the same time one moves the budget on, the others read it.
-- KEYS and ARGV[1]: prelude.lua. ARGV: 2 the state that was read ("": none), 3 the new state.
-- Out: 1, or 0: another router was first.
open_although_full()
if (get(PREFIX .. 'policy') or '') ~= ARGV[2] then return 0 end
redis.call('SET', PREFIX .. 'policy', ARGV[3])
return 1
