-- Published: reads dead letters without the bytes of their images. Stands alone; it writes nothing.
-- KEYS: 1 tf:{Q}:dead. ARGV: 1 first and 2 last stream id as XRANGE takes them, 3 how many are looked at, 4 an error code
-- and 5 an id that letters must have ("": any), 6 "newest": from the last to the first (absent or "": as they came).
-- Out: {stream id of the last one looked at ("": none), {{stream id, image bytes (-1: no image), {field, value...}}...}}.
local out, last = {}, ''
local newest = ARGV[6] == 'newest'
local found = redis.call(newest and 'XREVRANGE' or 'XRANGE', KEYS[1], newest and ARGV[2] or ARGV[1],
                         newest and ARGV[1] or ARGV[2], 'COUNT', tonumber(ARGV[3]))
for _, entry in ipairs(found) do
  local fields, image, code, id = {}, -1, nil, nil
  for i = 1, #entry[2], 2 do
    local name, value = entry[2][i], entry[2][i + 1]
    if name == 'error_code' then code = value end
    if name == 'id' then id = value end
    if name == 'image' then
      image = #value
    else
      fields[#fields + 1] = name
      fields[#fields + 1] = value
    end
  end
  last = entry[1]
  if (ARGV[4] == '' or ARGV[4] == code) and (ARGV[5] == '' or ARGV[5] == id) then out[#out + 1] = {last, image, fields} end
end
return {last, out}
