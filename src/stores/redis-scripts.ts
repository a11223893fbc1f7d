/**
 * Redis scripts: one for each verb. The server runs a script as a whole, so a verb is one round trip and nothing comes in between.
 *
 * A record is a string: 16 digits of version, 12 digits of the ttl it was written with, then the value. The server knows the ttl that is left, so the age
 * needs no clock: it is the difference of the two. Every script makes its first change with a command that the server refuses when it is full, read-only or
 * cannot persist. Once the server has accepted a first change, it accepts the others. So a script is applied completely or not at all. Watchers are told
 * last; if the server refuses that (SPUBLISH before Redis 7, a user without the right), the rest is already done.
 * After: redis.io/docs, "Scripting with Lua" and "Atomicity of scripts"; Kulkarni et al., "Logical Physical Clocks" (2014).
 */

/** A script and its SHA-1, by which the server knows it. */
export interface RedisScript {
  readonly text: string;
  readonly hash: string;
}

/** The digits of a record before its value. */
export const versionDigits = 16;
export const ttlDigits = 12;
/** For longer values, scanning for ASCII costs more than sending them as a separate piece. */
const longestText = 4096;

/** A record without its version. It is a copy, since the client may write it to its socket later. Clients send a string at less cost than bytes. */
export function recordOf(value: Uint8Array, ttl: string): string | Buffer {
  const head = ttl.padStart(ttlDigits, '0');
  // Our own records start with a byte beyond ASCII, so the rest need not be scanned.
  if (value.length <= longestText && !(value[0]! >= 0x80)) {
    const text = Buffer.from(value.buffer, value.byteOffset, value.length).toString('latin1');
    // Characters beyond ASCII would take more bytes in UTF-8.
    if (Buffer.byteLength(text) === value.length) return head + text;
  }
  const record = Buffer.allocUnsafe(ttlDigits + value.length);
  record.write(head, 'latin1');
  record.set(value, ttlDigits);
  return record;
}

/** KEYS: the record. Returns the record and its remaining milliseconds, or nothing. */
export const readScript: RedisScript = {
  text: `
local record = redis.call('GET', KEYS[1])
if not record then return {} end
return { record, redis.call('PTTL', KEYS[1]) }`,
  hash: '66466e90bbb927b2d73fe1b7c5535b639bd9389c',
};

/** KEYS: the records. Returns, for each, what a read returns. */
export const readManyScript: RedisScript = {
  text: `
local answers = {}
for index, key in ipairs(KEYS) do
  local record = redis.call('GET', key)
  answers[index] = record and { record, redis.call('PTTL', key) } or {}
end
return answers`,
  hash: 'c5f8c8a4ea961fac057036be344d66f9d7810eca',
};

/**
 * KEYS: the record; the last version of its bucket, whose name is also that of its channel. ARGV: the record without its version, which begins with its ttl;
 * PUBLISH or SPUBLISH, and the hash of the key, for the watchers; and, for a conditional write, the version that the key must have. Returns the new version;
 * or the entry in the way, as a read does.
 *
 * A version is the time in microseconds; or one more than the last of the bucket, if the clock has not moved on or was put back. So versions grow even when
 * the bucket has been lost, unless the clock goes back by more than the time since. All versions have the same number of digits, so strings compare as
 * numbers do. Each command costs as much as the rest of the script, so there are few.
 */
export const writeScript: RedisScript = {
  text: `
if ARGV[4] then
  local held = redis.call('GETRANGE', KEYS[1], 0, 15)
  if held == '' then held = 0 end
  if tonumber(held) ~= tonumber(ARGV[4]) then
    if held == 0 then return {} end
    return { redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1]) }
  end
end
local time = redis.call('TIME')
local version = string.format('%010d%06d', time[1], time[2])
local last = redis.call('SET', KEYS[2], version, 'GET')
if last and last >= version then
  version = string.format('%016.0f', last + 1)
  redis.call('SET', KEYS[2], version)
end
redis.call('SET', KEYS[1], version .. ARGV[1], 'PX', tonumber(string.sub(ARGV[1], 1, 12)))
redis.pcall(ARGV[2], KEYS[2], ARGV[3])
return tonumber(version)`,
  hash: '5a8dba9a7b59c9b2e40fb202ee00be1a401f2492',
};

/**
 * KEYS: the record. ARGV: PUBLISH or SPUBLISH, the channel and the hash of the key, for the watchers; and, for a conditional remove, the version that the key
 * must have. Returns how many records were removed.
 */
export const removeScript: RedisScript = {
  text: `
if ARGV[4] and tonumber(redis.call('GETRANGE', KEYS[1], 0, 15)) ~= tonumber(ARGV[4]) then return 0 end
local removed = redis.call('DEL', KEYS[1])
if removed == 1 then redis.pcall(ARGV[1], ARGV[2], ARGV[3]) end
return removed`,
  hash: '773b92a85f8e18fba02c5a25cf906a9f225a8670',
};

/** KEYS: the last version of a bucket, whose channel is tested. ARGV: PUBLISH or SPUBLISH, the channel. The message is the hash of no key. */
export const tryChannelScript: RedisScript = {
  text: `
return redis.call(ARGV[1], ARGV[2], '')`,
  hash: 'f3ad49d0a9ff50ca3f1f2bf242bbbd7fdb9761ed',
};

/**
 * KEYS: the limit. ARGV: microseconds per unit, units of the burst, units requested. Returns whether they were granted, and the microseconds of debt before
 * that. Kept are when the debt will be worked off, and when that was written: if the clock was put back since, what was owed then is owed now. Time counts
 * from a day in 2023, so that fractions of a microsecond are exact enough.
 */
export const consumeScript: RedisScript = {
  text: `
local time = redis.call('TIME')
local now = (time[1] - 1700000000) * 1000000 + time[2]
local whole = ARGV[1] * ARGV[2]
local worked, written = string.match(redis.call('GET', KEYS[1]) or '', '^(%S+) (%S+)$')
local ahead = math.max((tonumber(written) or now) - now, 0)
local owed = math.max((tonumber(worked) or now) - ahead - now, 0)
local debt = math.min(owed, whole)
local after = debt + ARGV[1] * ARGV[3]
local granted = after - whole <= 0.001
if granted then owed = after end
if owed > 0 and (ahead > 0 or granted and after > debt) then
  redis.call('SET', KEYS[1], string.format('%.17g %.0f', now + owed, now), 'PX', math.ceil(owed / 1000))
end
return { granted and 1 or 0, string.format('%.17g', debt) }`,
  hash: '2a104555c91a3b3771ef04e0b4b321b983f0018b',
};
