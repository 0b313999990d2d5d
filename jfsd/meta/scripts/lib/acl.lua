-- POSIX ACL rules inside scripts (format.md §15.1, §15.2). Needs no other library.
--
-- A rule is a value of hash `acl`: owner(2) group(2) mask(2) other(2) #users(4) {uid(4) perm(2)}
-- #groups(4) {gid(4) perm(2)}; 0xFFFF is "unset". Rules are shared and never change; ids are never
-- freed. jfsd/meta/acl.py has the same arithmetic for Python; a test compares the two.

local acl = {}
acl.UNSET = 0xFFFF

-- Rule bytes of an id, or nil if the hash lacks it (the caller answers EIO: 5).
function acl.load(prefix, id)
  return redis.call('HGET', prefix .. 'acl', string.format('%.0f', id)) or nil
end

-- Id (number) of a rule with exactly these bytes; allocated if there is none yet.
function acl.insert(prefix, rule)
  local all = redis.call('HGETALL', prefix .. 'acl')
  local best
  for i = 1, #all, 2 do
    if all[i + 1] == rule then
      local id = tonumber(all[i])
      if not best or id < best then best = id end
    end
  end
  while not best do
    local id = redis.call('INCR', prefix .. 'aclMaxId')
    if redis.call('HSETNX', prefix .. 'acl', string.format('%.0f', id), rule) == 1 then best = id end
  end
  return best
end

-- owner, group, mask, other of a rule.
function acl.perms(rule)
  return struct.unpack('>I2I2I2I2', rule)
end

-- True if the rule says no more than mode bits can: no named entries and no mask.
function acl.is_minimal(rule)
  local _, _, mask = acl.perms(rule)
  return mask == acl.UNSET and #rule == 16
end

local function acl_digits(mode)
  return bit.band(bit.rshift(mode, 6), 7), bit.band(bit.rshift(mode, 3), 7), bit.band(mode, 7)
end

local function acl_bits(owner, group, other)
  return bit.bor(bit.lshift(bit.band(owner, 7), 6), bit.lshift(bit.band(group, 7), 3), bit.band(other, 7))
end

-- Mode bits of a node under a rule: owner, mask (group if there is no mask), other.
function acl.bits(rule)
  local owner, group, mask, other = acl.perms(rule)
  if mask == acl.UNSET then mask = group end
  return acl_bits(owner, mask, other)
end

-- Id of rule `id` after chmod to `mode`: owner, other and mask (group if minimal) take its bits.
-- nil if the rule is missing.
function acl.chmod(prefix, id, mode)
  local rule = acl.load(prefix, id)
  if not rule then return nil end
  local _, group, mask = acl.perms(rule)
  local user_bits, group_bits, other_bits = acl_digits(mode)
  if acl.is_minimal(rule) then group = group_bits else mask = group_bits end
  return acl.insert(prefix, struct.pack('>I2I2I2I2', user_bits, group, mask, other_bits) .. string.sub(rule, 9))
end

-- Mode and access ACL id of a node created with `mode` (umask not applied) under a parent whose
-- default rule is `default_id`; a new directory also gets default_id itself. Not for symlinks.
-- nil if the rule is missing.
function acl.inherit(prefix, default_id, mode)
  local rule = acl.load(prefix, default_id)
  if not rule then return nil end
  if acl.is_minimal(rule) then return bit.band(mode, bit.bor(acl.bits(rule), 0xFE00)), 0 end
  local owner, _, mask, other = acl.perms(rule)
  local user_bits, group_bits, other_bits = acl_digits(mode)
  owner, mask, other = bit.band(user_bits, owner), bit.band(group_bits, mask), bit.band(other_bits, other)
  local child = struct.pack('>I2', owner) .. string.sub(rule, 3, 4)
    .. struct.pack('>I2I2', mask, other) .. string.sub(rule, 9)
  return bit.bor(bit.band(mode, 0xFE00), acl_bits(owner, mask, other)), acl.insert(prefix, child)
end

-- Rule as it is stored for a node of `mode`: owner, group and other that are unset come from it.
function acl.fill(rule, mode)
  local owner, group, mask, other = acl.perms(rule)
  local user_bits, group_bits, other_bits = acl_digits(mode)
  if owner == acl.UNSET then owner = user_bits end
  if group == acl.UNSET then group = group_bits end
  if other == acl.UNSET then other = other_bits end
  return struct.pack('>I2I2I2I2', owner, group, mask, other) .. string.sub(rule, 9)
end

-- Access and default ACL ids of an attribute record (format.md §6.1); 0 is none.
function acl.ids(record)
  if #record < 79 then return 0, 0 end
  local access, default = struct.unpack('>I4I4', record, 72)
  return access, default
end

-- The record with these ids; it is 8 bytes shorter when both are 0. The tier is kept.
function acl.with_ids(record, access, default)
  local rest = string.sub(record, #record < 79 and 72 or 80)
  if access == 0 and default == 0 then return string.sub(record, 1, 71) .. rest end
  return string.sub(record, 1, 71) .. struct.pack('>I4I4', access, default) .. rest
end
