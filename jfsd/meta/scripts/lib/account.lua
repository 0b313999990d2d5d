-- Usage: volume counters, directory statistics (DS), directory quotas (DQ), user and group usage
-- (UG), all inside the script that causes them (format.md §16).
--@include attr

local EDQUOT, ENOSPC = 122, 28
local UNLIMITED = string.rep('\255', 16)
local WITH_STATS = string.find(SWITCHES, 'S', 1, true) ~= nil
local WITH_OWNERS = string.find(SWITCHES, 'U', 1, true) ~= nil
local WITH_TREES = call('EXISTS', P .. 'dirQuotaUsedInodes') == 1

local function add(key, field, n)
  if n == 0 then return nil end
  return call('HINCRBY', P .. key, field, whole(n))
end

-- usedSpace and totalInodes.
local function count(bytes, inodes)
  if bytes ~= 0 then call('INCRBY', P .. 'usedSpace', whole(bytes)) end
  if inodes ~= 0 then call('INCRBY', P .. 'totalInodes', inodes) end
end

-- DS of one directory: length in halves (each may be negative), bytes, children. A directory
-- without a field is left without: it is computed anew by who needs it.
local function dir_stats(dir, hi, lo, bytes, inodes)
  if not WITH_STATS or call('HEXISTS', P .. 'dirUsedSpace', dir) == 0 then return end
  add('dirDataLength', dir, hi * 4294967296)
  add('dirDataLength', dir, lo)
  add('dirUsedSpace', dir, bytes)
  add('dirUsedInodes', dir, inodes)
end

-- Most volumes know no limit and count no owners: then these do nothing, and cost nothing.
local function nothing() end
local function nobody() return {} end
local quota_chain, chain_over, chain_add = nobody, nothing, nothing
local owner_over, owner_add, owners_add, volume_over = nothing, nothing, nothing, nothing

if WITH_OWNERS or WITH_TREES or ARGV[7] ~= '0' or ARGV[8] ~= '0' then
  -- Directories with a quota among `dir` and its ancestors; none for what lies in the trash.
  function quota_chain(dir)
    local found = {}
    if not WITH_TREES then return found end
    for _ = 1, 100000 do
      if #dir > 18 then return {} end
      if call('HEXISTS', P .. 'dirQuotaUsedInodes', dir) == 1 then found[#found + 1] = dir end
      if dir == '1' then return found end
      local a = load(dir)
      if not a or parent(a) == NO_PARENT then return found end
      dir = decimal(parent(a))
    end
    return found
  end

  -- True if limits (16 bytes or false) do not leave room. Limits <= 0 are none.
  local function beyond(limits, used_bytes, used_inodes, bytes, inodes)
    if not limits or #limits ~= 16 or limits == UNLIMITED then return false end
    local bytes_hi, bytes_lo, inodes_hi, inodes_lo = struct.unpack('>i4I4i4I4', limits)
    local max_bytes = bytes_hi * 4294967296 + bytes_lo
    local max_inodes = inodes_hi * 4294967296 + inodes_lo
    return bytes > 0 and max_bytes > 0 and (tonumber(used_bytes) or 0) + bytes > max_bytes
      or inodes > 0 and max_inodes > 0 and (tonumber(used_inodes) or 0) + inodes > max_inodes
  end

  local function over_one(which, id, bytes, inodes)
    local limits = call('HGET', P .. which .. 'Quota', id)
    if not limits or limits == UNLIMITED then return false end
    return beyond(limits, call('HGET', P .. which .. 'QuotaUsedSpace', id),
      call('HGET', P .. which .. 'QuotaUsedInodes', id), bytes, inodes)
  end

  -- EDQUOT if a directory of `chain` has no room for the growth, else nil.
  function chain_over(chain, bytes, inodes)
    for _, dir in ipairs(chain) do
      if over_one('dir', dir, bytes, inodes) then return EDQUOT end
    end
  end

  function chain_add(chain, bytes, inodes)
    for _, dir in ipairs(chain) do
      add('dirQuotaUsedSpace', dir, bytes)
      add('dirQuotaUsedInodes', dir, inodes)
    end
  end

  -- EDQUOT if user ('user') or group ('group') has no room for the growth, else nil.
  function owner_over(which, id, bytes, inodes)
    if WITH_OWNERS and over_one(which, id, bytes, inodes) then return EDQUOT end
  end

  function owner_add(which, id, bytes, inodes)
    add(which .. 'QuotaUsedSpace', id, bytes)
    add(which .. 'QuotaUsedInodes', id, inodes)
    if call('HEXISTS', P .. which .. 'Quota', id) == 0 then
      call('HSET', P .. which .. 'Quota', id, UNLIMITED)
    end
  end

  -- UG: charge a user and a group (numbers).
  function owners_add(uid, gid, bytes, inodes)
    if not WITH_OWNERS then return end
    owner_add('user', whole(uid), bytes, inodes)
    owner_add('group', whole(gid), bytes, inodes)
  end

  -- ENOSPC if the volume's capacity or inode limit leaves no room for the growth, else nil.
  function volume_over(bytes, inodes)
    if bytes > 0 and ARGV[7] ~= '0'
      and (tonumber(call('GET', P .. 'usedSpace') or 0)) + bytes > tonumber(ARGV[7]) then
      return ENOSPC
    end
    if inodes > 0 and ARGV[8] ~= '0'
      and (tonumber(call('GET', P .. 'totalInodes') or 0)) + inodes > tonumber(ARGV[8]) then
      return ENOSPC
    end
  end
end
