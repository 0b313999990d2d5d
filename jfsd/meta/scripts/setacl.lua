-- Set or remove a node's access or default ACL (format.md §15.2).
--
-- ARGV[9] inode  [10] access or default  [11] rule; '' removes
-- ARGV[12] caller's uid  [13] the caller's gids, a blank before and after each
-- Result {0, attributes}; {1} EPERM: not the owner, immutable, or in the trash; {2} no such node.
--@include op
--@include attr
--@include acl

local SETGID = 1024
local ino, which, rule = ARGV[9], ARGV[10], ARGV[11]
local uid, gids = tonumber(ARGV[12]), ARGV[13]
if is_trash(octets(ino)) then return { 1 } end
local before = load(ino)
if not before then return { 2 } end
if immutable(before) then return { 1 } end
if uid ~= 0 and uid ~= u32(before, 4) then return { 1 } end

local access, default = acl.ids(before)
local bits = mode(before)

local function set_access()
  local member = string.find(gids, ' ' .. whole(u32(before, 8)) .. ' ', 1, true)
  if uid ~= 0 and not member and bit.band(bits, SETGID) ~= 0 then bits = bits - SETGID end
  if rule == '' then
    access = 0
    return
  end
  local filled = acl.fill(rule, bits)
  if acl.is_minimal(filled) then access = 0 else access = acl.insert(P, filled) end
  bits = bit.band(bits, 0xE00) + acl.bits(filled)
end

if which == 'access' then
  set_access()
elseif rule == '' then
  default = 0
else
  default = acl.insert(P, acl.fill(rule, bits))
end

local after = acl.with_ids(before, access, default)
after = string.sub(after, 1, 1) .. struct.pack('>I2', kind(before) * 4096 + bits) .. string.sub(after, 4)
if after ~= before then
  after = with_ctime(after)
  call('SET', P .. 'i' .. ino, after)
end
return record({ 0, after })
