-- The trash (format.md §10.1): hourly directories below the trash root.
--@include attr
--@include account

-- Name of an entry there: where it was, what it is, how it was called; cut to 255 bytes.
local function trash_name(dir, ino, name)
  return string.sub(dir .. '-' .. ino .. '-' .. name, 1, 255)
end

-- True if the hour's directory exists and has an entry of that name.
local function in_hour(hour, name)
  local entry = call('HGET', P .. 'd' .. TRASH_TEXT, hour)
  return entry and call('HEXISTS', P .. 'd' .. decimal(string.sub(entry, 2, 9)), name) == 1
end

-- Inode of the hour's directory, as text and as 8 bytes; made if it does not exist. Writes.
local function hour_dir(hour)
  local entry = call('HGET', P .. 'd' .. TRASH_TEXT, hour)
  if entry then
    local ino8 = string.sub(entry, 2, 9)
    return decimal(ino8), ino8
  end
  local n = call('INCR', P .. 'nextTrash')
  local ino8 = '\127\255\255\255' .. struct.pack('>I4', 268435456 + n)
  local ino = decimal(ino8)
  call('SET', P .. 'i' .. ino, '\0' .. struct.pack('>I2I4I4', DIRECTORY * 4096 + 365, 0, 0)
    .. NOW .. NOW .. NOW .. struct.pack('>I4I4I4I4', 2, 0, 4096, 0) .. TRASH .. '\0')
  call('HSET', P .. 'd' .. TRASH_TEXT, hour, string.char(DIRECTORY) .. ino8)
  call('HSET', P .. 'dirUsedInodes', ino, '0')
  call('HSET', P .. 'dirDataLength', ino, '0')
  call('HSET', P .. 'dirUsedSpace', ino, '0')
  count(4096, 1)
  return ino, ino8
end
