-- Marks ids as cancelled, so that whoever claims their jobs from now on ends them at once.
-- KEYS and ARGV[1]: prelude.lua. ARGV: 2 dedupe_ms, then ids.
-- Out: {1 or 0...}; 0: that id has ended already.
local out = {}
open_although_full()
for i = 3, #ARGV do
  local marked = 0
  if #ARGV[i] > 0 and #ARGV[i] <= ID_BYTES_MAX and not get(PREFIX .. 'done:' .. ARGV[i]) then
    redis.call('SET', PREFIX .. 'cancelled:' .. ARGV[i], '1', 'PX', ARGV[2])
    marked = 1
  end
  out[#out + 1] = marked
end
return out
