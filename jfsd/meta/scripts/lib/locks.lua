-- Lock records shared with every client of the volume (format.md §14). Needs no other library.
--
-- Hashes lockf<inode> and lockp<inode>: field <sid>_<OWNER16>. A POSIX value is a run of 24-byte
-- records type(4) pid(4) start(8) end(8, inclusive), sorted, not overlapping. Offsets have 63 bits,
-- more than a double holds, so they stay split into high and low halves here.

local locks = {}
locks.READ, locks.WRITE, locks.UNLOCK = 0, 1, 2

-- Session id in front of a field's '_', as a string.
function locks.sid(field)
  return string.match(field, '^(%d+)_') or ''
end

-- True while the session is registered; a lock of any other session blocks nobody.
function locks.alive(prefix, sid)
  if redis.call('ZSCORE', prefix .. 'allSessions', sid) then return true end
  return prefix == '' and redis.call('ZSCORE', 'sessions', sid) and true or false
end

-- True if a registered session expires after a second: nobody may clean it yet.
function locks.expires_after(prefix, sid, second)
  local score = redis.call('ZSCORE', prefix .. 'allSessions', sid)
  return score and tonumber(score) > second
end

-- True if a session that is gone owns the field; the field is removed (format.md, Appendix D).
function locks.drop_if_dead(prefix, key, field)
  if locks.alive(prefix, locks.sid(field)) then return false end
  redis.call('HDEL', key, field)
  return true
end

-- Note in locked<sid> that the session holds something in `key`.
function locks.note(prefix, key, sid)
  redis.call('SADD', prefix .. 'locked' .. sid, key)
end

-- Remove `field`, and the note when no other field of its session is left.
function locks.remove(prefix, key, field)
  redis.call('HDEL', key, field)
  local sid = locks.sid(field)
  for _, other in ipairs(redis.call('HKEYS', key)) do
    if locks.sid(other) == sid then return end
  end
  redis.call('SREM', prefix .. 'locked' .. sid, key)
end

local function below(ah, al, bh, bl)
  return ah < bh or (ah == bh and al < bl)
end

local function before(h, l)
  if l == 0 then return h - 1, 0xFFFFFFFF end
  return h, l - 1
end

local function after(h, l)
  if l == 0xFFFFFFFF then return h + 1, 0 end
  return h, l + 1
end

-- Records of a value: {type=, pid=, sh=, sl=, eh=, el=}.
function locks.parse(value)
  local records = {}
  for at = 1, #value - 23, 24 do
    local type, pid, sh, sl, eh, el = struct.unpack('>I4I4I4I4I4I4', value, at)
    records[#records + 1] = { type = type, pid = pid, sh = sh, sl = sl, eh = eh, el = el }
  end
  return records
end

function locks.format(records)
  local parts = {}
  for i, r in ipairs(records) do
    parts[i] = struct.pack('>I4I4I4I4I4I4', r.type, r.pid, r.sh, r.sl, r.eh, r.el)
  end
  return table.concat(parts)
end

-- A range from two 16-digit hex strings.
function locks.range(type, pid, first, last)
  return {
    type = type,
    pid = pid,
    sh = tonumber(string.sub(first, 1, 8), 16),
    sl = tonumber(string.sub(first, 9), 16),
    eh = tonumber(string.sub(last, 1, 8), 16),
    el = tonumber(string.sub(last, 9), 16),
  }
end

function locks.overlap(a, b)
  return not below(a.eh, a.el, b.sh, b.sl) and not below(b.eh, b.el, a.sh, a.sl)
end

-- First of another owner's records that stands against `wanted`, or nil.
function locks.conflict(value, wanted)
  for _, r in ipairs(locks.parse(value)) do
    if (r.type == locks.WRITE or wanted.type == locks.WRITE) and locks.overlap(r, wanted) then
      return r
    end
  end
  return nil
end

local function follows(r, last)
  local h, l = after(last.eh, last.el)
  return last.type == r.type and last.pid == r.pid and h == r.sh and l == r.sl
end

-- Value of an owner after `new` replaced whatever it held in that range; '' if nothing is left.
function locks.merge(value, new)
  local rest = {}
  for _, r in ipairs(locks.parse(value)) do
    if locks.overlap(r, new) then
      if below(r.sh, r.sl, new.sh, new.sl) then
        local eh, el = before(new.sh, new.sl)
        rest[#rest + 1] = { type = r.type, pid = r.pid, sh = r.sh, sl = r.sl, eh = eh, el = el }
      end
      if below(new.eh, new.el, r.eh, r.el) then
        local sh, sl = after(new.eh, new.el)
        rest[#rest + 1] = { type = r.type, pid = r.pid, sh = sh, sl = sl, eh = r.eh, el = r.el }
      end
    else
      rest[#rest + 1] = r
    end
  end
  if new.type ~= locks.UNLOCK then rest[#rest + 1] = new end
  table.sort(rest, function(a, b) return below(a.sh, a.sl, b.sh, b.sl) end)
  local joined = {}
  for _, r in ipairs(rest) do
    local last = joined[#joined]
    if last and follows(r, last) then
      last.eh, last.el = r.eh, r.el
    else
      joined[#joined + 1] = r
    end
  end
  return locks.format(joined)
end
