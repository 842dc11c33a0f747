-- Commits one result. Any attempt's may, the first does; of an id that has ended already nothing is added.
-- KEYS and ARGV[1]: prelude.lua. ARGV: 2 dedupe_ms, 3 entry, 4 caption, 5 vision_tokens, 6 json.
-- Out: "committed"; "duplicate" (the id has ended before; the entry is removed, a reply that it names is answered);
-- "unknown" (no such job: neither a hash nor an entry).
local dedupe_ms, entry = ARGV[2], ARGV[3]
local lane, sid = split(entry)
if not lane then return 'unknown' end
local job = redis.call('HMGET', job_key(entry), 'id', 'reply', 'stage', 'attempt')
local id, reply = job[1], job[2]
-- Before the first assignment the hash knows no reply yet; a hash that got lost knows nothing.
if not id or not job[4] then
  local fields = read_entry(lane, sid)
  if not id and not fields then return 'unknown' end
  if fields then
    id = id or id_of(sid, fields)
    reply = field(fields, 'reply')
  end
end
local key = done_key(entry, sid, id)
local done = get(key)
if done then
  end_duplicate(entry, lane, sid, id, done, reply)
  return 'duplicate'
end
open_although_full()
local fields = {'id', id, 'caption', ARGV[4], 'vision_tokens', ARGV[5], 'json', ARGV[6]}
local to = reply_key(reply)
if to then
  redis.call('SET', key, 'y ' .. reply .. ' ' .. answer(to, fields), 'PX', dedupe_ms)
else
  redis.call('SET', key, 'r ' .. redis.call('XADD', RESULTS, '*', unpack(fields)), 'PX', dedupe_ms)
end
redis.call('DEL', PREFIX .. 'cancelled:' .. id)
forget(entry, lane, sid)
return 'committed'
