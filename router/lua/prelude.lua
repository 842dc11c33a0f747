-- Put in front of every router script: names of the keys, their checks, and the ways a job can end.
-- KEYS, the same for all: 1 jobs:0, 2 jobs:1, 3 results, 4 dead, 5 lease:encode, 6 lease:decode, 7 retry, 8 cancel,
-- 9 routers, 10 model. ARGV[1]: the prefix "tf:{Q}:" of the keys that carry an entry, an id or a name.
local TYPES = {'stream', 'stream', 'stream', 'stream', 'zset', 'zset', 'zset', 'stream', 'zset', 'hash'}
local JOBS = {['0'] = KEYS[1], ['1'] = KEYS[2]}
local RESULTS, DEAD, ENCODE, DECODE, RETRY = KEYS[3], KEYS[4], KEYS[5], KEYS[6], KEYS[7]
local CANCEL, ROUTERS, MODEL = KEYS[8], KEYS[9], KEYS[10]
local PREFIX = ARGV[1]
local REPLY_KEPT_MS = 86400000
local DEAD_FIELDS_MAX, DEAD_VALUE_BYTES_MAX, ID_BYTES_MAX = 64, 65536, 256

-- A script that fails half-way is not rolled back, so a key of a wrong type stops it here, before the first write.
for i, wanted in ipairs(TYPES) do
  local found = redis.call('TYPE', KEYS[i]).ok
  if found ~= wanted and found ~= 'none' then
    return redis.error_reply('TFTYPE ' .. KEYS[i] .. ' holds a ' .. found .. ', not a ' .. wanted)
  end
end

-- When memory is short Redis refuses a script's first write, and none after it. What frees memory, or only moves a job on,
-- opens with a write that is always allowed, so that a full Redis drains.
local function open_although_full() redis.call('ZREM', RETRY, '') end

local function now_us()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000000 + tonumber(t[2])
end

-- "1:1712345678901-0" -> "1", "1712345678901-0"; nil for anything else.
local function split(entry) return string.match(entry, '^([01]):(%d+%-%d+)$') end

local function job_key(entry) return PREFIX .. 'job:' .. entry end

-- An entry without an id is known by its stream id, which two lanes may share: those have done keys of their own.
local function done_key(entry, sid, id)
  if id == sid then return PREFIX .. 'done-entry:' .. entry end
  return PREFIX .. 'done:' .. id
end

-- Where the assignments of these ten seconds are counted.
local function assigned_key(now_ms) return PREFIX .. 'assigned:' .. math.floor(now_ms / 10000) end

local function get(key)
  local value = redis.pcall('GET', key)
  return type(value) == 'string' and value or nil
end

local function field(fields, name)
  for i = 1, #fields, 2 do
    if fields[i] == name then return fields[i + 1] end
  end
end

local function id_of(sid, fields)
  local id = field(fields, 'id')
  if id and #id > 0 and #id <= ID_BYTES_MAX then return id end
  return sid
end

-- The fields of an entry, or nil where it vanished from the stream.
local function read_entry(lane, sid)
  local found = redis.call('XRANGE', JOBS[lane], sid, sid)
  return found[1] and found[1][2] or nil
end

-- The names that `reply` and `pace` take.
local function is_name(name) return name and #name > 0 and #name <= 128 and string.match(name, '^[%w._:-]+$') end

-- The stream that a job's `reply` names; nil for no name, a malformed one, or a key that is something else.
local function reply_key(name)
  if not is_name(name) then return nil end
  local key = PREFIX .. 'reply:' .. name
  local found = redis.call('TYPE', key).ok
  if found ~= 'stream' and found ~= 'none' then return nil end
  return key
end

-- A stream that is written to every day never expires, whether anybody reads it or not: what is older than that goes here.
local function answer(key, fields)
  local kept_from_ms = math.floor(now_us() / 1000) - REPLY_KEPT_MS
  local sid = redis.call('XADD', key, 'MINID', '~', string.format('%.0f', kept_from_ms), '*', unpack(fields))
  redis.call('PEXPIRE', key, REPLY_KEPT_MS)
  return sid
end

-- Takes everything away that says the job is unfinished. True where its entry was still in the stream.
local function forget(entry, lane, sid)
  redis.call('ZREM', ENCODE, entry)
  redis.call('ZREM', DECODE, entry)
  redis.call('ZREM', RETRY, entry)
  redis.pcall('XACK', JOBS[lane], 'router', sid)
  local removed = redis.call('XDEL', JOBS[lane], sid)
  redis.call('DEL', job_key(entry))
  -- Jobs ended so far: with those still in the streams that makes all that ever arrived, whoever added them.
  if removed == 1 then redis.pcall('INCR', PREFIX .. 'ended') end
  return removed == 1
end

-- Another entry with an id that has ended already: it goes, and where it names a reply, a copy of the end goes there.
local function end_duplicate(entry, lane, sid, id, done, reply)
  local key = reply_key(reply)
  if not forget(entry, lane, sid) or not key then return end
  local kind, name, at = string.match(done, '^(%a) ?(%S*) (%d+%-%d+)$')
  local source = kind == 'r' and RESULTS or kind == 'd' and DEAD or kind == 'y' and reply_key(name)
  local found = source and redis.call('XRANGE', source, at, at)[1]
  if not found then
    answer(key, {'id', id, 'error_code', 'entry_lost', 'error_message',
                 'this id has ended before, and its result is no longer kept', 'attempts', '0'})
  elseif kind == 'd' then
    answer(key, {'id', id, 'error_code', field(found[2], 'error_code') or '', 'error_message',
                 field(found[2], 'error_message') or '', 'attempts', field(found[2], 'attempts') or '0'})
  else
    answer(key, found[2])
  end
end

-- Dead letters are bounded in number and in what they keep of images (a letter's stream id -> bytes, and their `sum`). The
-- scripts that bury set both bounds.
local DEAD_IMAGES, DEAD_DROPPED = PREFIX .. 'dead:images', PREFIX .. 'dead:dropped'
local dead_image_bytes_max, dead_max = 0, math.huge
local function may_keep(image)
  local found = redis.call('TYPE', DEAD_IMAGES).ok
  if found ~= 'hash' and found ~= 'none' then return false end
  return (tonumber(redis.call('HGET', DEAD_IMAGES, 'sum')) or 0) + #image <= dead_image_bytes_max
end

-- A letter that kept an image has gone.
local function free_image(sid, bytes)
  redis.call('HDEL', DEAD_IMAGES, sid)
  local freed = tonumber(bytes) or 0
  if freed > 0 then redis.call('HINCRBY', DEAD_IMAGES, 'sum', string.format('-%.0f', freed)) end -- "-0" is no number there
end

-- Drops the oldest letters past the bound, `most` of them at most. Their ids stay ended; `sweep` tells how many went.
local function bound_letters(most)
  local over = math.min(redis.call('XLEN', DEAD) - dead_max, most)
  if over <= 0 then return end
  for _ = 1, over do
    local oldest = redis.call('XRANGE', DEAD, '-', '+', 'COUNT', 1)[1][1] -- one at a time: letters hold images
    redis.call('XDEL', DEAD, oldest)
    local bytes = redis.pcall('HGET', DEAD_IMAGES, oldest)
    if type(bytes) == 'string' then free_image(oldest, bytes) end
  end
  redis.pcall('INCRBY', DEAD_DROPPED, over)
end

-- What a letter says itself, whatever the job's fields are called.
local OF_LETTER = {id = true, image = true, image_dropped = true, lane = true, error_code = true, error_message = true,
                   attempts = true}

-- Ends a job in the dead letters. fields: the entry's, or what is known of it. attempts: tries that counted.
local function bury(entry, lane, sid, id, fields, code, message, attempts, dedupe_ms)
  open_although_full()
  local letter = {'id', id}
  for i = 1, math.min(#fields, 2 * DEAD_FIELDS_MAX), 2 do
    local name = fields[i]
    if not OF_LETTER[name] then
      letter[#letter + 1] = string.sub(name, 1, ID_BYTES_MAX)
      letter[#letter + 1] = string.sub(fields[i + 1], 1, DEAD_VALUE_BYTES_MAX)
    end
  end
  local image = field(fields, 'image')
  local kept = image and may_keep(image)
  if image then
    letter[#letter + 1] = kept and 'image' or 'image_dropped'
    letter[#letter + 1] = kept and image or '1'
  end
  letter[#letter + 1] = 'lane'
  letter[#letter + 1] = lane
  local ending = {'error_code', code, 'error_message', message, 'attempts', tostring(attempts)}
  for _, value in ipairs(ending) do letter[#letter + 1] = value end
  local at = redis.call('XADD', DEAD, '*', unpack(letter))
  if kept then
    redis.call('HSET', DEAD_IMAGES, at, #image)
    redis.call('HINCRBY', DEAD_IMAGES, 'sum', #image)
  end
  redis.call('SET', done_key(entry, sid, id), 'd ' .. at, 'PX', dedupe_ms)
  redis.call('DEL', PREFIX .. 'cancelled:' .. id)
  redis.pcall('HINCRBY', PREFIX .. 'errors', code, 1)
  local key = reply_key(field(fields, 'reply'))
  if key then answer(key, {'id', id, unpack(ending)}) end
  forget(entry, lane, sid)
  bound_letters(2) -- one for this letter, and one where the bound was lowered; last, as the job has ended whatever comes of it
end
