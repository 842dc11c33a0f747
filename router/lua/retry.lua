-- Published: puts dead letters back on the queue, with their id and fields, as if they had never been tried; or drops them.
-- KEYS: 1 tf:{Q}:dead, 2 tf:{Q}:jobs:0, 3 tf:{Q}:jobs:1. ARGV: 1 the prefix "tf:{Q}:", 2 "0" or "1": the lane they go to,
-- "own": the one they came from (1 where a letter does not say), or "drop"; then stream ids of letters.
-- Out: for each "retried", "dropped", "gone" (no such letter), "ended" (its id has another end by now), "no_image" (its
-- bytes were not kept). What clears the id's end and what adds the job happen together, or not at all.
local DEAD, PREFIX, lane = KEYS[1], ARGV[1], ARGV[2]
local JOBS = {['0'] = KEYS[2], ['1'] = KEYS[3]}
local IMAGES = PREFIX .. 'dead:images'
local UNCANCELLED_KEPT_MS = 660000 -- longer than the routers keep requests to cancel
if #KEYS ~= 3 or (lane ~= 'drop' and lane ~= 'own' and not JOBS[lane]) then
  return redis.error_reply('invalid_argument retry.lua takes 3 keys, the prefix, a lane, "own" or "drop", and stream ids')
end
for key, wanted in pairs({[DEAD] = 'stream', [KEYS[2]] = 'stream', [KEYS[3]] = 'stream', [IMAGES] = 'hash'}) do
  local found = redis.call('TYPE', key).ok
  if found ~= wanted and found ~= 'none' then
    return redis.error_reply('invalid_argument ' .. key .. ' holds a ' .. found .. ', not a ' .. wanted)
  end
end

-- What a letter says itself; the rest is the job's.
local OF_LETTER = {id = true, image_dropped = true, lane = true, error_code = true, error_message = true, attempts = true}

local function remove(sid)
  local bytes = redis.call('HGET', IMAGES, sid)
  redis.call('XDEL', DEAD, sid)
  if bytes then
    redis.call('HDEL', IMAGES, sid)
    local freed = tonumber(bytes) or 0
    if freed > 0 then redis.call('HINCRBY', IMAGES, 'sum', string.format('-%.0f', freed)) end -- "-0" is no number there
  end
end

-- An entry without an id of its own is known by its stream id, and its end is noted by lane and stream id.
local function ends_of(id)
  local keys = {PREFIX .. 'done:' .. id}
  if string.match(id, '^%d+%-%d+$') then
    keys[2], keys[3] = PREFIX .. 'done-entry:0:' .. id, PREFIX .. 'done-entry:1:' .. id
  end
  return keys
end

local function retry(sid, letter)
  local id, fields, source, own = nil, {}, false, '1'
  for i = 1, #letter, 2 do
    local name = letter[i]
    if name == 'id' then id = letter[i + 1] end
    if name == 'image' or name == 'uri' then source = true end
    if name == 'lane' and JOBS[letter[i + 1]] then own = letter[i + 1] end
    if not OF_LETTER[name] then
      fields[#fields + 1] = name
      fields[#fields + 1] = letter[i + 1]
    end
  end
  if not id then return 'gone' end
  if not source then return 'no_image' end
  local mine = {}
  for _, key in ipairs(ends_of(id)) do
    local at = redis.pcall('GET', key)
    if at == 'd ' .. sid then
      mine[#mine + 1] = key
    elseif at and key == PREFIX .. 'done:' .. id then
      return 'ended'
    end
  end
  -- Routers that start later read old requests to cancel this id again: those count no more.
  local t = redis.call('TIME')
  local now_ms = string.format('%.0f', tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000))
  redis.call('SET', PREFIX .. 'uncancelled:' .. id, now_ms, 'PX', UNCANCELLED_KEPT_MS)
  redis.call('DEL', PREFIX .. 'cancelled:' .. id)
  redis.call('XADD', JOBS[lane] or JOBS[own], '*', 'id', id, unpack(fields))
  for _, key in ipairs(mine) do redis.call('DEL', key) end
  remove(sid)
  return 'retried'
end

local out = {}
for i = 3, #ARGV do
  local sid = ARGV[i]
  local found = redis.call('XRANGE', DEAD, sid, sid)[1]
  if not found then
    out[#out + 1] = 'gone'
  elseif lane == 'drop' then
    remove(sid)
    out[#out + 1] = 'dropped'
  else
    out[#out + 1] = retry(sid, found[2])
  end
end
return out
