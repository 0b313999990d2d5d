-- Attribute records (format.md §6.1). Positions are those of the format plus one: flags 1,
-- type and mode 2, uid 4, gid 8, atime 12, mtime 24, ctime 36, nlink 48, length 52, rdev 60,
-- parent 64. Records are changed by cutting and joining, so what is not meant is kept.
--@include number

local FILE, DIRECTORY, SYMLINK = 1, 2, 3
local NO_PARENT = string.rep('\0', 8)
local TRASH = '\127\255\255\255\16\0\0\0'
local TRASH_TEXT = '9223372032828243968'

-- A record with at least the fields up to parent; ancient ones had none.
local function modern(a)
  if not a then return nil end
  if #a < 71 then return string.sub(a, 1, 63) .. string.rep('\0', 9) end
  if #a == 71 then return a .. '\0' end
  return a
end

local function load(ino) return modern(call('GET', P .. 'i' .. ino)) end

local function kind(a) return math.floor(string.byte(a, 2) / 16) end
local function mode(a) return string.byte(a, 2) % 16 * 256 + string.byte(a, 3) end
local function u32(a, at) return (struct.unpack('>I4', a, at)) end
local function parent(a) return string.sub(a, 64, 71) end

-- True if the flags of a node forbid changing it: immutable or append-only.
local function frozen(a) return bit.band(string.byte(a, 1), 3) ~= 0 end
local function immutable(a) return bit.band(string.byte(a, 1), 1) ~= 0 end
local function skips_trash(a) return bit.band(string.byte(a, 1), 32) ~= 0 end
local function sticky(a) return bit.band(string.byte(a, 2), 2) ~= 0 end

-- True if the node lies directly in an hourly directory of the trash: parent > trash root.
local function in_trash(a)
  local hi, lo = struct.unpack('>I4I4', a, 64)
  return hi == 2147483647 and lo > 268435456
end

-- True if 8 bytes name the trash root or one of its hourly directories.
local function is_trash(ino8)
  local hi, lo = struct.unpack('>I4I4', ino8)
  return hi == 2147483647 and lo >= 268435456
end

local function with_parent(a, ino8) return string.sub(a, 1, 63) .. ino8 .. string.sub(a, 72) end
local function with_ctime(a) return string.sub(a, 1, 35) .. NOW .. string.sub(a, 48) end

-- mtime and ctime = now, nlink changed by `links`.
local function touched(a, links)
  if links == 0 then return string.sub(a, 1, 23) .. NOW .. NOW .. string.sub(a, 48) end
  return string.sub(a, 1, 23) .. NOW .. NOW
    .. struct.pack('>I4', u32(a, 48) + links) .. string.sub(a, 52)
end

-- ctime = now, nlink changed by `links`.
local function relinked(a, links)
  return string.sub(a, 1, 35) .. NOW .. struct.pack('>I4', u32(a, 48) + links) .. string.sub(a, 52)
end

-- Bytes charged for a length given in halves; exact, as it is a multiple of 4096 (A4K, §0).
local function space(hi, lo)
  if hi == 0 and lo == 0 then return 4096 end
  return hi * 4294967296 + math.ceil(lo / 4096) * 4096
end

-- Data length in halves: that of a file, 0 for every other node.
local function data_length(a)
  if kind(a) ~= FILE then return 0, 0 end
  local hi, lo = struct.unpack('>I4I4', a, 52)
  return hi, lo
end
