/**
 * Redis queue scripts: a fair queue for a key, whose release hands the lock to the next owner; and a guard for the time after a restart.
 *
 * The queue is a sorted set of tickets in order of arrival. Beside it, a hash holds the place of each ticket: until when it is kept, the channel of its
 * process, and the record to be written for it. The release writes the record of the first ticket whose process listens, for a second at most, and tells that
 * process: the server itself knows how many heard. The guard identifies the server (its run id is new after a restart, its replication id after each
 * promotion) and holds the time of the first request to it. If the guard is missing or names another server, the server has lost something. As in all
 * scripts, the first change that may be refused comes before anything else is granted, and commands are few: taking a free key that nobody waits for takes
 * six, giving it back four.
 * After: Mellor-Crummey and Scott (1991), for handing over instead of freeing; Antirez, "Redlock", for the delayed restart.
 */
import type { RedisScript } from './redis-scripts.js';

/** How long a lock that was handed over is reserved for its new owner: a waiter that is frozen costs the others this long. */
const claimMs = 1_000;

/**
 * KEYS: the record, the last version of its bucket, the queue, the places, the guard. ARGV: PUBLISH or SPUBLISH, the channel of the bucket and the hash of
 * the key for the watchers, the milliseconds without grants after a restart or 0; further ones differ by script.
 */
const common = `
local time
local function nowMs()
  time = time or redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000)
end
local function tell() redis.pcall(ARGV[1], ARGV[2], ARGV[3]) end
local function put(record, ttl)
  time = time or redis.call('TIME')
  local version = string.format('%010d%06d', time[1], time[2])
  local last = redis.call('SET', KEYS[2], version, 'GET')
  if last and last >= version then
    version = string.format('%016.0f', last + 1)
    redis.call('SET', KEYS[2], version)
  end
  redis.call('SET', KEYS[1], version .. record, 'PX', ttl)
  tell()
  return tonumber(version)
end
local function quietMs()
  if ARGV[4] == '0' then return 0 end
  local run = string.match(redis.call('INFO', 'server'), 'run_id:(%x+)')
  local life = run .. ' ' .. string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
  local known, since = string.match(redis.call('GET', KEYS[5]) or '', '^(%x+ %x+) (%d+)$')
  since = tonumber(since)
  local now = nowMs()
  if known ~= life or since > now then
    redis.call('SET', KEYS[5], life .. ' ' .. string.format('%.0f', now))
    since = now
  end
  return math.max(0, since + ARGV[4] - now)
end`;

const line = `
local function remove(ticket)
  redis.call('ZREM', KEYS[3], ticket)
  redis.call('HDEL', KEYS[4], ticket)
end
local function firstPlace()
  local ticket = redis.call('ZRANGE', KEYS[3], 0, 0)[1]
  if not ticket then return end
  return ticket, string.match(redis.call('HGET', KEYS[4], ticket) or '', '^(%d+) (%S+) (.*)$')
end
local function passOn(own)
  for _ = 1, 1000 do
    local ticket, endsMs, channel, record = firstPlace()
    if not ticket or ticket == own then return ticket end
    local heard = 0
    if endsMs and tonumber(endsMs) > nowMs() then heard = redis.pcall(ARGV[1], channel, ticket) end
    if type(heard) == 'table' then return false end
    if heard > 0 then
      local claim = math.min(${claimMs}, string.sub(record, 1, 12))
      put(string.format('%012.0f', claim) .. string.sub(record, 13), claim)
      remove(ticket)
      local second, _, where = firstPlace()
      if where then redis.pcall(ARGV[1], where, second .. '+') end
      return ticket
    end
    remove(ticket)
  end
end`;

/**
 * ARGV: the ticket, its record without a version, its ttl, how long its place is kept or 0, the channel of its process. Returns the version; or the entry in
 * the way, as a read does, and for how long nothing is granted.
 */
export const enterScript: RedisScript = {
  text: `${common}${line}
local held = redis.call('GET', KEYS[1])
local isMine = held and string.sub(held, 29) == string.sub(ARGV[6], 13)
local quiet = 0
if not held or isMine then
  quiet = quietMs()
  if quiet == 0 then
    local turn = ARGV[5]
    if not isMine then turn = passOn(ARGV[5]) end
    if turn == nil or turn == ARGV[5] then
      local version = put(ARGV[6], ARGV[7])
      if turn then remove(ARGV[5]) end
      return version
    end
    held = redis.call('GET', KEYS[1])
  end
end
if ARGV[8] ~= '0' then
  if not redis.call('ZSCORE', KEYS[3], ARGV[5]) then
    local last = redis.call('ZRANGE', KEYS[3], -1, -1, 'WITHSCORES')[2] or 0
    redis.call('ZADD', KEYS[3], last + 1, ARGV[5])
  end
  redis.call('HSET', KEYS[4], ARGV[5], string.format('%.0f', nowMs() + ARGV[8]) .. ' ' .. ARGV[9] .. ' ' .. ARGV[6])
  local keepMs = math.max(ARGV[8], redis.call('PTTL', KEYS[3]))
  redis.call('PEXPIRE', KEYS[3], keepMs)
  redis.call('PEXPIRE', KEYS[4], keepMs)
end
return { held or '', redis.call('PTTL', KEYS[1]), quiet }`,
  hash: '4d6450dceaade79dfb41ea0100145b1833a16c65',
};

/** ARGV: the version that the key must have, or ''. Returns how many records were removed. */
export const passScript: RedisScript = {
  text: `${common}${line}
local held = redis.call('GETRANGE', KEYS[1], 0, 15)
if held == '' or (ARGV[5] ~= '' and tonumber(held) ~= tonumber(ARGV[5])) then return 0 end
if quietMs() > 0 or not passOn() then
  redis.call('DEL', KEYS[1])
  tell()
end
return 1`,
  hash: '172fdf33cb2f9f30a85496703e51b815083bb071',
};

/** KEYS: the record, the queue, the places. ARGV: tickets. Returns what a read returns. */
export const leaveScript: RedisScript = {
  text: `
redis.call('ZREM', KEYS[2], unpack(ARGV))
redis.call('HDEL', KEYS[3], unpack(ARGV))
local record = redis.call('GET', KEYS[1])
if not record then return {} end
return { record, redis.call('PTTL', KEYS[1]) }`,
  hash: '4c441114e1aabf8bb657ea4aa6ae9fc6a091cd40',
};

/** KEYS: the queue. Returns how many tickets wait. */
export const sizeScript: RedisScript = {
  text: `return redis.call('ZCARD', KEYS[1])`,
  hash: '069031802520e6bede929a90688aa1aaeff3de25',
};

/**
 * ARGV: the record without its version, its ttl, the version that the key must have or ''. Returns what a write returns, and for how long nothing is granted.
 */
export const guardedWriteScript: RedisScript = {
  text: `${common}
local held = redis.call('GETRANGE', KEYS[1], 0, 15)
if ARGV[7] ~= '' and tonumber(held == '' and 0 or held) ~= tonumber(ARGV[7]) then
  return { redis.call('GET', KEYS[1]) or '', redis.call('PTTL', KEYS[1]), 0 }
end
local quiet = quietMs()
if quiet > 0 then return { redis.call('GET', KEYS[1]) or '', redis.call('PTTL', KEYS[1]), quiet } end
return put(ARGV[5], ARGV[6])`,
  hash: '9c6fae71941806c4c3f2043b636e523546904892',
};
