"""`jfsd check` where nothing is mounted: would a mount work, and if not, why not."""

import json
import shutil

import pytest
from support.clients import Storage
from support.session import free_ports, run

from jfsd.errors import ExitCode

pytestmark = [pytest.mark.promise(11), pytest.mark.promise(16)]


class Place:
    """A configuration, and all that it needs."""

    def __init__(self, jfsd, juicefs, meta_url, tmp_path):
        self.jfsd, self.juicefs, self.meta_url = jfsd, juicefs, meta_url
        self.root = tmp_path
        self.mountpoint = tmp_path / "m"
        self.mountpoint.mkdir()
        self.objects = tmp_path / "objects"
        juicefs.format(meta_url, "vol", Storage(directory=self.objects))
        self.config = tmp_path / "etc" / "inst.toml"
        self.config.parent.mkdir()
        self.write()

    def write(self, *lines, **values):
        told = {
            "meta": self.meta_url,
            "mountpoint": str(self.mountpoint),
            "cache-dir": str(self.root / "new" / "cache"),
            **{key.replace("_", "-"): value for key, value in values.items()},
        }
        text = [f"{key} = {json.dumps(value)}" for key, value in told.items()]
        self.config.write_text("\n".join([*text, *lines]))
        self.config.chmod(0o600)

    def check(self, *words):
        env = {
            **self.jfsd.env(),
            "JFSD_CONFIG_DIR": str(self.config.parent),
            "JFSD_RUNTIME_DIR": str(self.root / "run"),
        }
        before = sorted(self.root.rglob("*"))
        done = run([self.jfsd.binary, "check", *words], env=env, check=False)
        assert sorted(self.root.rglob("*")) == before, "a check changes nothing"
        return done.returncode, done.stdout + done.stderr


@pytest.fixture
def place(jfsd, juicefs, meta_url, tmp_path):
    return Place(jfsd, juicefs, meta_url, tmp_path)


def test_a_mount_that_will_work(place):
    ready = (ExitCode.OK, "nothing is in the way of a mount\n")
    assert place.check("inst") == ready
    assert place.check("--config", place.config) == ready
    assert place.check("--config", place.config, place.mountpoint) == ready
    code, said = place.check("inst", "--json")
    assert (code, json.loads(said)) == (
        ExitCode.OK,
        {
            "smooth": True,
            "mountpoint": str(place.mountpoint),
            "mounted": False,
            "server": {},
            "changes": [],
            "problems": [],
        },
    )


def test_all_that_is_in_the_way_is_told_at_once(place):
    (port,) = free_ports(1)
    (place.mountpoint / "file").write_text("x")
    (place.root / "plain").write_text("x")
    place.write(meta=f"redis://127.0.0.1:{port}/1", cache_dir=str(place.root / "plain" / "c"))
    code, said = place.check("inst")
    assert code == ExitCode.NOT_SMOOTH
    full, cache, redis = said.splitlines()
    assert full.startswith(f"in the way: {place.mountpoint}: is not empty; ")
    assert cache.startswith(f"in the way: --cache-dir {place.root}/plain/c: cannot be made, ")
    assert redis.startswith(f"in the way: redis://127.0.0.1:{port}/1: ")
    problems = json.loads(place.check("inst", "--json")[1])["problems"]
    assert [problem["code"] for problem in problems] == [
        ExitCode.MOUNTPOINT_UNUSABLE,
        ExitCode.USAGE,
        ExitCode.META_UNREACHABLE,
    ]


def test_a_mount_point_that_is_missing(place):
    place.write(mountpoint=str(place.root / "none"))
    code, said = place.check("inst")
    assert (code, f"{place.root}/none: does not exist; create it" in said) == (17, True)
    assert place.check(place.root / "none")[0] == ExitCode.USAGE, "it has no configuration"


def test_a_store_that_is_gone_and_one_of_another_volume(place):
    (place.objects / "vol" / "juicefs_uuid").write_text("00000000-another")
    code, said = place.check("inst")
    assert (code, "the bucket belongs to another volume" in said) == (17, True)
    shutil.rmtree(place.objects)
    code, said = place.check("inst")
    assert code == ExitCode.NOT_SMOOTH
    (line,) = said.splitlines()
    assert "in the way: " in line
    assert str(place.objects) in line


def test_a_database_without_a_volume(place, redis_server):
    for db in redis_server.lease():
        place.write(meta=redis_server.url(db))
        code, said = place.check("inst")
        assert (code, "holds no volume; create one" in said) == (17, True)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("attr-cash = 1", "did you mean attr-cache?"),
        ("prefetch = 1000", "is out of range"),
        ("prefetch", "is no TOML"),
    ],
)
def test_a_configuration_that_is_wrong_has_the_usual_code(place, line, said):
    place.write(line)
    code, told = place.check("inst")
    assert code == ExitCode.USAGE
    assert said in told
    assert told.count("\n") == 1


@pytest.mark.parametrize("words", [(), ("redis://localhost/1",), ("other",), ("inst", "more")])
def test_a_wrong_call(place, words):
    code, said = place.check(*words)
    assert code == ExitCode.USAGE
    assert said.count("\n") == 1
