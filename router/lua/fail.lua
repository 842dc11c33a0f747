-- One job's attempt failed, or the job is refused. Tries it again after a backoff, or ends it in the dead letters.
-- KEYS and ARGV[1]: prelude.lua. ARGV: 2 dedupe_ms, 3 instance, 4 entry, 5 attempt, 6 mode, 7 code, 8 message,
-- 9 failures_max, 10 backoff_ms, 11 backoff_ms_max, 12 jitter (0.5 to 1; scales the backoff), 13 dead_image_bytes_max,
-- 14 dead_max.
-- mode: "count" (may pass with another try), "last" (counts, can never pass), "free" (handed back untried),
-- "suspect" (was on a worker that died, not known to be alone there: tried again alone, not counted, but for one that
-- was at so many deaths that it can't be chance), "refuse" (this router's, ends now).
-- Out: "retry", "dead", or "stale": not the current attempt, not this router's, or ended already; nothing was changed.
local dedupe_ms, instance, entry, attempt, mode = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6]
local code, message, failures_max = ARGV[7], ARGV[8], tonumber(ARGV[9])
local backoff_ms, backoff_ms_max, jitter = tonumber(ARGV[10]), tonumber(ARGV[11]), tonumber(ARGV[12])
local SUSPICIONS_MAX = 20
dead_image_bytes_max, dead_max = tonumber(ARGV[13]), tonumber(ARGV[14])
local lane, sid = split(entry)
if not lane then return 'stale' end
local key = job_key(entry)
local job = redis.call('HMGET', key, 'id', 'owner', 'attempt', 'stage', 'failures', 'returns', 'uri', 'reply',
                       'suspicions')
if not job[1] then return 'stale' end
if mode == 'refuse' then
  if job[2] ~= instance or job[4] == 'retry' then return 'stale' end
elseif job[3] ~= attempt or (job[4] ~= 'encode' and job[4] ~= 'decode') then
  return 'stale'
end
local id, failures = job[1], tonumber(job[5]) or 0
local fields = nil
local function ends()
  fields = read_entry(lane, sid)
  if not fields then
    fields = {}
    if job[7] and #job[7] > 0 then fields = {'uri', job[7]} end
    if job[8] and #job[8] > 0 then fields[#fields + 1] = 'reply'; fields[#fields + 1] = job[8] end
  end
  local done = get(done_key(entry, sid, id))
  if done then
    end_duplicate(entry, lane, sid, id, done, field(fields, 'reply'))
    return 'stale'
  end
  bury(entry, lane, sid, id, fields, code, message, failures, dedupe_ms)
  return 'dead'
end
local suspicions = tonumber(job[9]) or 0
if mode == 'suspect' then
  suspicions = suspicions + 1
  if suspicions > SUSPICIONS_MAX then mode = 'count' end
end
if mode == 'count' or mode == 'last' then failures = failures + 1 end
if mode == 'last' or mode == 'refuse' or (mode == 'count' and failures >= failures_max) then return ends() end

local doublings = failures - 1
local returns = tonumber(job[6]) or 0
if mode == 'free' then
  returns = returns + 1
  doublings = returns - 3  -- being handed back is no fault of the job: it starts at a quarter of the backoff
elseif mode == 'suspect' then
  doublings = -1
end
open_although_full()
local delay_ms = math.min(backoff_ms * 2 ^ math.min(doublings, 30), backoff_ms_max) * jitter
redis.call('ZADD', RETRY, math.floor(now_us() / 1000 + delay_ms), entry)
redis.call('ZREM', ENCODE, entry)
redis.call('ZREM', DECODE, entry)
redis.call('HSET', key, 'owner', '', 'stage', 'retry', 'failures', failures, 'returns', returns, 'error_code', code,
           'error_message', message)
if suspicions > 0 then redis.call('HSET', key, 'suspect', '1', 'suspicions', suspicions) end
return 'retry'
