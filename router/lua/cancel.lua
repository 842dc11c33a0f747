-- Marks ids as cancelled, so that whoever claims their jobs from now on ends them at once.
-- KEYS and ARGV[1]: prelude.lua. ARGV: 2 dedupe_ms, then two a request: id, stream id in `cancel`.
-- Out: {1, 0 or 2...}; 0: that id has ended already, 2: it was put back on the queue after the request.
local out = {}
open_although_full()
for i = 3, #ARGV, 2 do
  local id, asked_ms = ARGV[i], tonumber(string.match(ARGV[i + 1], '^(%d+)')) or 0
  local retried_ms = tonumber(get(PREFIX .. 'uncancelled:' .. id)) or 0
  local marked = 0
  if #id > 0 and #id <= ID_BYTES_MAX and asked_ms < retried_ms then
    marked = 2
  elseif #id > 0 and #id <= ID_BYTES_MAX and not get(PREFIX .. 'done:' .. id) then
    redis.call('SET', PREFIX .. 'cancelled:' .. id, '1', 'PX', ARGV[2])
    marked = 1
  end
  out[#out + 1] = marked
end
return out
