-- Published: reads dead letters without the bytes of their images. Stands alone; it writes nothing.
-- KEYS: 1 tf:{Q}:dead. ARGV: 1 first and 2 last stream id as XRANGE takes them, 3 how many are looked at, 4 an error code
-- and 5 an id that letters must have ("": any).
-- Out: {stream id of the last one looked at ("": none), {{stream id, image bytes (-1: no image), {field, value...}}...}}.
local out, last = {}, ''
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[2], 'COUNT', tonumber(ARGV[3]))) do
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
