-- Tells what a router knows of load and workers, for people and programs that read Redis.
-- KEYS and ARGV[1]: prelude.lua. ARGV: 2 interval_ms (of `load`, over all routers), 3 kept_ms (of a worker's field), 4 how
-- many arguments of `load` follow, those (field, value...), then how many of `workers`, those (instance, JSON, ...), then
-- paces (name, budget, ...). `load` is written by the first router of each interval; a worker's field by each that has it.
-- Out: 1 where `load` was written, else 0.
local now_ms = math.floor(now_us() / 1000)
local load_key, workers_key = PREFIX .. 'load', PREFIX .. 'workers'
open_although_full()

local function slice(from, count)
  local out = {}
  for i = from, from + count - 1 do out[#out + 1] = ARGV[i] end
  return out
end

local load_size = tonumber(ARGV[4])
local workers_size = tonumber(ARGV[5 + load_size])
local fields, workers = slice(5, load_size), slice(6 + load_size, workers_size)
if #workers > 0 then redis.pcall('HSET', workers_key, unpack(workers)) end
for i = 6 + load_size + workers_size, #ARGV, 2 do
  local key = PREFIX .. 'pace:' .. ARGV[i]
  -- A run that ended took its hash away, or let it expire: it is not made again.
  if redis.call('EXISTS', key) == 1 then redis.pcall('HSET', key, 'budget', ARGV[i + 1], 'updated_ms', now_ms) end
end

local written = redis.pcall('HGET', load_key, 'updated_ms')
if type(written) == 'string' and now_ms - (tonumber(written) or 0) < tonumber(ARGV[2]) and tonumber(written) <= now_ms then
  return 0
end

-- Shares of the counts among the assignments of the last minute, in the order of `counts`.
local function mix_of(counts)
  local by, all, out = {}, 0, {}
  for back = 0, 5 do
    local found = redis.pcall('HGETALL', assigned_key(now_ms - back * 10000))
    for i = 1, #found, 2 do
      local jobs = tonumber(found[i + 1]) or 0
      by[found[i]] = (by[found[i]] or 0) + jobs
      all = all + jobs
    end
  end
  for n in string.gmatch(counts, '%d+') do out[#out + 1] = string.format('%.2f', all > 0 and (by[n] or 0) / all or 0) end
  return table.concat(out, ',')
end

local function errors_of()
  local found, out = redis.pcall('HGETALL', PREFIX .. 'errors'), {}
  for i = 1, #found, 2 do out[#out + 1] = cjson.encode(found[i]) .. ':' .. (tonumber(found[i + 1]) or 0) end
  table.sort(out)
  return '{' .. table.concat(out, ',') .. '}'
end

local encode = redis.call('ZCOUNT', ENCODE, '(' .. now_ms, '+inf')
local decode = redis.call('ZCOUNT', DECODE, '(' .. now_ms, '+inf')
local unfinished = redis.call('XLEN', JOBS['0']) + redis.call('XLEN', JOBS['1'])
redis.pcall('HSET', load_key, 'updated_ms', now_ms, 'unfinished', unfinished, 'waiting',
            math.max(0, unfinished - encode - decode), 'encode', encode, 'decode', decode, 'mix',
            mix_of(field(fields, 'counts') or ''), 'errors', errors_of(), 'dead', redis.call('XLEN', DEAD), 'results',
            redis.call('XLEN', RESULTS), unpack(fields))
local known = redis.pcall('HGETALL', workers_key)
for i = 1, #known, 2 do
  local heard_ms = tonumber(string.match(known[i + 1], '"heard_ms":(%d+)')) or 0
  if now_ms - heard_ms > tonumber(ARGV[3]) then redis.pcall('HDEL', workers_key, known[i]) end
end
return 1
