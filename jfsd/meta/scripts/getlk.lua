-- The first POSIX lock of another owner that stands against a wanted one (format.md §14).
--
-- ARGV[9] inode  [10] field <sid>_<OWNER16>  [11] wanted type 0 read, 1 write
-- ARGV[12] first byte  [13] last byte, inclusive, 16 hex digits each
-- Result {0} free; {0, type, first, last (hex), pid}: pid is 0 unless it is the same session's.
-- Changes nothing.
--@include op
--@include locks

local field = ARGV[10]
local wanted = locks.range(tonumber(ARGV[11]), 0, ARGV[12], ARGV[13])
local held = call('HGETALL', P .. 'lockp' .. ARGV[9])
for i = 1, #held, 2 do
  local sid = locks.sid(held[i])
  local found = held[i] ~= field and locks.conflict(held[i + 1], wanted)
  if found and locks.alive(P, sid) then
    local pid = sid == locks.sid(field) and found.pid or 0
    return {
      0, found.type, string.format('%08x%08x', found.sh, found.sl),
      string.format('%08x%08x', found.eh, found.el), pid,
    }
  end
end
return { 0 }
