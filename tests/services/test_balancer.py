"""The balancer as a process, over real sockets: who is let in, who is asked, and what happens when members go."""

from __future__ import annotations

import itertools
import json
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from tests.client.fake_server import Behaviour, FakeServer
from tests.services.balancing import API, AUTHORIZED, PROJECT, SCRAPE, Balancer, Replica, wait_until

MakeReplica = Callable[..., Replica]
ROUTES = (
    "/",
    "/v1/models",
    "/v1/chat/completions",
    "/metrics",
    "/health/",
    "/health?x",
    "//health",
    "/HEALTH",
    "/pause",
)
NO_TOKENS = (None, "", "Bearer ", "Bearer wrong", f"Basic {API}", API, f"Bearer {API}x", f"bearer {API}")


@pytest.fixture
def balancer(tmp_path: Path) -> Iterator[Balancer]:
    with Balancer(tmp_path) as balancer:
        yield balancer


@pytest.fixture
def by_prefix(tmp_path: Path) -> Iterator[Balancer]:
    with Balancer(tmp_path, policy="prefix") as balancer:
        yield balancer


@pytest.fixture
def fake(balancer: Balancer) -> Iterator[FakeServer]:
    """The balancer's only member, in this process."""
    with FakeServer(token=API) as server:
        balancer.publish("vllm", server.port)
        yield server


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[MakeReplica]:
    """Make members that run as processes of their own."""
    with ExitStack() as stack:

        def make(name: str, token_delay_s: float = 0.005) -> Replica:
            made = Replica(tmp_path, name, token_delay_s)
            stack.callback(made.stop)
            return made.start()

        yield make


def member_of(answer: requests.Response) -> str:
    """Return the service that answered."""
    return answer.headers["X-Orch-Member"].partition(".")[0]


class TestToken:
    """Who is let in."""

    @pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "DELETE"])
    def test_route_without_the_token_is_refused(self, balancer: Balancer, fake: FakeServer, method: str) -> None:
        for path, authorization in itertools.product(ROUTES, NO_TOKENS):
            connection = balancer.connection()
            connection.request(method, path, headers={} if authorization is None else {"Authorization": authorization})
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())) == (401, {"error": "Unauthorized"})
            connection.close()
        assert not fake.connections

    def test_scrape_token_opens_the_metrics_alone(self, balancer: Balancer, fake: FakeServer) -> None:
        scraping = {"Authorization": f"Bearer {SCRAPE}"}
        assert requests.get(f"{balancer.url}/metrics", headers=scraping, timeout=5).status_code == 200
        assert requests.get(f"{balancer.url}/metrics", headers=AUTHORIZED, timeout=5).status_code == 200
        assert requests.get(f"{balancer.url}/v1/models", headers=scraping, timeout=5).status_code == 401

    def test_token_is_passed_on(self, balancer: Balancer, fake: FakeServer) -> None:
        assert balancer.ask().status_code == 200
        assert [seen.authorization for seen in fake.requests] == [f"Bearer {API}"]

    def test_tokens_are_on_no_command_line_and_in_no_log(self, balancer: Balancer, fake: FakeServer) -> None:
        balancer.ask()
        pids = [str(balancer.process.pid), *_children(balancer.process.pid)]
        assert len(pids) == 2
        said = b"".join(Path(f"/proc/{pid}/cmdline").read_bytes() for pid in pids) + balancer.log.read_bytes()
        assert API.encode() not in said
        assert SCRAPE.encode() not in said

    @pytest.mark.parametrize("text", ["", "a b", 'a"', "a)", "a\nb", "ä"])
    def test_text_that_is_no_token_is_refused(self, tmp_path: Path, text: str) -> None:
        (tmp_path / "token").write_text(text)
        argv = ["--endpoints-dir", str(tmp_path), "--status-dir", str(tmp_path), "--service", "vllm", "--port", "1"]
        ended = _run([*argv, "--api-token-file", str(tmp_path / "token")])
        assert ended.returncode == 2
        assert "not a bearer token" in ended.stderr


class TestMembers:
    """Members follow the endpoint records."""

    def test_health_tells_whether_there_is_a_member(self, balancer: Balancer) -> None:
        with FakeServer(token=API) as server:
            assert _health(balancer) == 503
            balancer.publish("vllm-3", server.port)
            assert _health(balancer) == 200
            balancer.withdraw("vllm-3")
            assert _health(balancer) == 503

    def test_records_of_other_services_are_not_members(self, balancer: Balancer, fake: FakeServer) -> None:
        record = (balancer.endpoints / "vllm.json").read_text()
        for name in ("vllm-guard", "vllm2", "client", ".vllm-1", "vllm-1-2"):
            (balancer.endpoints / f"{name}.json").write_text(record)
        time.sleep(1.2)
        assert len(balancer.members()) == 1

    def test_damaged_record_keeps_its_member(self, balancer: Balancer, fake: FakeServer) -> None:
        for text in ("{", "[]", '{"ip": "a; disable server members/x", "port": 1, "attempt": "1"}'):
            (balancer.endpoints / "vllm.json").write_text(text)
            time.sleep(1.2)
            assert len(balancer.members()) == 1
        assert balancer.log.read_text().count("vllm.json: ") == 3

    def test_unreadable_folder_keeps_all_members(self, balancer: Balancer, fake: FakeServer) -> None:
        moved = balancer.endpoints.rename(balancer.endpoints.with_name("away"))
        time.sleep(1.2)
        assert balancer.ask().status_code == 200
        moved.rename(balancer.endpoints)
        assert balancer.log.read_text().count("the members stay as they are") == 1

    def test_silent_member_whose_port_a_stranger_took_gets_no_request_and_comes_back_with_a_sign(
        self, balancer: Balancer, fake: FakeServer
    ) -> None:
        with FakeServer(token=API) as second:
            balancer.beat("vllm")
            balancer.publish("vllm-1", second.port)
            balancer.beat("vllm-1")

            def others_are_gone() -> bool:
                balancer.beat("vllm-1")
                return {name.partition(".")[0] for name in balancer.members()} == {"vllm-1"}

            assert 10 < wait_until(others_are_gone) < 14
            asked = len(fake.requests)
            assert {member_of(balancer.ask()) for _ in range(6)} == {"vllm-1"}
            assert len(fake.requests) == asked
            balancer.beat("vllm")
            wait_until(lambda: len(balancer.members()) == 2)

    def test_silence_of_all_changes_nothing(self, balancer: Balancer, fake: FakeServer) -> None:
        with FakeServer(token=API) as second:
            balancer.beat("vllm")
            balancer.publish("vllm-1", second.port)
            balancer.beat("vllm-1")
            balancer.status.rename(balancer.status.with_name("away"))
            time.sleep(13)
            assert len(balancer.members()) == 2

    def test_new_attempt_takes_the_place_of_the_old(self, balancer: Balancer, fake: FakeServer) -> None:
        with FakeServer(token=API) as second:
            balancer.publish("vllm", second.port)
            wait_until(lambda: len(balancer.members()) == 1)
            balancer.ask()
            assert (len(fake.requests), len(second.requests)) == (0, 1)

    def test_same_attempt_comes_back(self, balancer: Balancer, fake: FakeServer) -> None:
        fake.behaviour = Behaviour(n_tokens=20, token_delay_s=0.1)
        record = (balancer.endpoints / "vllm.json").read_text()
        under_way = balancer.ask(stream=True)
        balancer.withdraw("vllm")
        (balancer.endpoints / "vllm.json").write_text(record)
        wait_until(lambda: len(balancer.members()) == 1)
        assert balancer.ask(stream=True).content.endswith(b"[DONE]\n\n")
        assert under_way.content.endswith(b"[DONE]\n\n")

    def test_requests_under_way_on_a_leaving_member_go_on(self, balancer: Balancer, fake: FakeServer) -> None:
        fake.behaviour = Behaviour(n_tokens=30, token_delay_s=0.1)
        under_way = balancer.ask(stream=True)
        with FakeServer(token=API) as second:
            balancer.publish("vllm-1", second.port)
            balancer.withdraw("vllm")
            for _ in range(10):
                assert member_of(balancer.ask()) == "vllm-1"
            assert fake.in_flight == 1
            assert under_way.content.endswith(b"[DONE]\n\n")
            # Its last request is over: it is forgotten.
            wait_until(lambda: len(balancer.metric("haproxy_server_status", state="UP")) == 1)

    def test_none_is_lost_while_members_come_and_go(self, balancer: Balancer) -> None:
        with ExitStack() as stack:
            servers = [stack.enter_context(FakeServer(token=API)) for _ in range(3)]
            for server in servers:
                server.behaviour = Behaviour(n_tokens=12, token_delay_s=0.01)
            balancer.publish("vllm-0", servers[0].port)
            pool = stack.enter_context(ThreadPoolExecutor(16))
            answers = [pool.submit(lambda: balancer.ask(stream=True).content) for _ in range(1000)]
            for step in range(1, 5):
                balancer.publish(f"vllm-{step}", servers[step % 3].port)
                balancer.withdraw(f"vllm-{step - 1}")
            assert not all(answer.done() for answer in answers), "the members changed too late to matter"
            assert all(answer.result().endswith(b"[DONE]\n\n") for answer in answers)
        assert sum(len(server.requests) for server in servers) == 1000
        assert all(server.requests for server in servers)


class TestDeath:
    """A member is killed."""

    @pytest.mark.parametrize("policy", ["least_outstanding", "prefix"])
    def test_requests_without_an_answer_are_asked_elsewhere(
        self, tmp_path: Path, replica: MakeReplica, policy: str
    ) -> None:
        with Balancer(tmp_path, policy) as balancer, ThreadPoolExecutor(20) as pool:
            dying, staying = replica("dying"), replica("staying")
            dying.silence.touch()
            balancer.publish("vllm-0", dying.port)
            answers = [pool.submit(balancer.ask) for _ in range(20)]
            wait_until(lambda: dying.asked() == 20)
            balancer.publish("vllm-1", staying.port)
            dying.signal(signal.SIGKILL)
            assert [(answer.result().status_code, member_of(answer.result())) for answer in answers] == [
                (200, "vllm-1")
            ] * 20
            assert staying.asked() == 20
            assert sum(balancer.metric("haproxy_server_redispatch_warnings_total").values()) >= 20

    @pytest.mark.parametrize(("policy", "longest_s"), [("least_outstanding", 1.0), ("prefix", 2.0)])
    def test_dead_member_with_a_record_costs_no_request(
        self, tmp_path: Path, replica: MakeReplica, policy: str, longest_s: float
    ) -> None:
        with Balancer(tmp_path, policy) as balancer:
            members = [replica("a"), replica("b")]
            for number, member in enumerate(members):
                balancer.publish(f"vllm-{number}", member.port)
            members[0].signal(signal.SIGKILL)
            killed_s = time.monotonic()
            answers = [balancer.ask(f"{number}") for number in range(60)]
            assert {member_of(answer) for answer in answers} == {"vllm-1"}
            assert max(answer.elapsed.total_seconds() for answer in answers) < longest_s
            wait_until(lambda: len(balancer.members()) == 1)
            assert time.monotonic() - killed_s < 3
            members[0].start()
            assert wait_until(lambda: len(balancer.members()) == 2) < 3
            assert {member_of(balancer.ask(f"{number}")) for number in range(60)} == {"vllm-0", "vllm-1"}

    def test_member_that_takes_no_connection_is_out_within_seconds(self, balancer: Balancer, fake: FakeServer) -> None:
        with socket.create_server(("127.0.0.1", 0), backlog=0) as gone, ExitStack() as stack:
            # Its queue is full: like that of a node without power, it answers nothing at all.
            for _ in range(2):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(gone.getsockname())
            balancer.publish("vllm-1", gone.getsockname()[1])
            joined_s = time.monotonic()
            with ThreadPoolExecutor(4) as pool:
                answers = list(pool.map(lambda _: balancer.ask(), range(4)))
            assert {member_of(answer) for answer in answers} == {"vllm"}
            wait_until(lambda: len(balancer.members()) == 1)
            assert time.monotonic() - joined_s < 9

    def test_answer_that_breaks_off_is_an_error_and_never_asked_again(
        self, balancer: Balancer, replica: MakeReplica
    ) -> None:
        dying, staying = replica("dying", token_delay_s=0.05), replica("staying")
        balancer.publish("vllm-0", dying.port)
        streams = [
            balancer.ask(stream=True, tokens=200, headers={"X-Request-Id": f"request-{number}"}) for number in range(5)
        ]
        balancer.publish("vllm-1", staying.port)
        dying.signal(signal.SIGKILL)
        for stream in streams:
            with pytest.raises(requests.exceptions.ChunkedEncodingError):
                _ = stream.content
        assert staying.asked() == 0
        assert balancer.ask().status_code == 200
        lines = balancer.log.read_text()
        for number in range(5):
            assert lines.count(f"id=request-{number} ") == 1
        assert lines.count(" end=SD ") == 5
        broken_off = balancer.metric("haproxy_server_server_aborts_total")
        assert {name.partition(".")[0]: value for name, value in broken_off.items()} == {"vllm-0": 5, "vllm-1": 0}

    def test_last_member_dies_without_an_answer(self, balancer: Balancer, replica: MakeReplica) -> None:
        dying = replica("dying")
        dying.silence.touch()
        balancer.publish("vllm", dying.port)
        with ThreadPoolExecutor(1) as pool:
            asked = pool.submit(balancer.ask)
            wait_until(lambda: dying.asked() == 1)
            dying.signal(signal.SIGKILL)
            answer = asked.result()
        assert answer.status_code in {502, 503}
        assert answer.json()["error"]["type"] in {"member_died", "no_member"}
        assert answer.headers["X-Request-Id"] in balancer.log.read_text()

    def test_member_that_hangs_is_out_within_seconds_and_its_requests_are_left_alone(
        self, balancer: Balancer, replica: MakeReplica
    ) -> None:
        hanging, staying = replica("hanging", token_delay_s=0.05), replica("staying")
        balancer.publish("vllm-0", hanging.port)
        under_way = balancer.ask(stream=True, tokens=20)
        balancer.publish("vllm-1", staying.port)
        hanging.signal(signal.SIGSTOP)
        assert wait_until(lambda: len(balancer.members()) == 1) < 9
        assert {member_of(balancer.ask()) for _ in range(10)} == {"vllm-1"}
        hanging.signal(signal.SIGCONT)
        assert wait_until(lambda: len(balancer.members()) == 2) < 5
        assert under_way.content.endswith(b"[DONE]\n\n")


class TestChoice:
    """Which member is asked."""

    def test_least_outstanding_is_fair(self, balancer: Balancer) -> None:
        with ExitStack() as stack:
            servers = [stack.enter_context(FakeServer(token=API)) for _ in range(3)]
            for number, server in enumerate(servers):
                server.behaviour = Behaviour(first_token_delay_s=1.0)
                balancer.publish(f"vllm-{number}", server.port)
            with ThreadPoolExecutor(30) as pool:
                answers = list(pool.map(lambda _: balancer.ask(), range(30)))
        assert {answer.status_code for answer in answers} == {200}
        assert [server.max_in_flight for server in servers] == [10, 10, 10]

    def test_slow_member_gets_fewer_requests(self, balancer: Balancer) -> None:
        with FakeServer(token=API) as slow, FakeServer(token=API) as fast, ThreadPoolExecutor(8) as pool:
            slow.behaviour, fast.behaviour = Behaviour(first_token_delay_s=0.2), Behaviour(first_token_delay_s=0.02)
            balancer.publish("vllm-0", slow.port)
            balancer.publish("vllm-1", fast.port)
            list(pool.map(lambda _: balancer.ask(), range(200)))
        assert len(fast.requests) > 4 * len(slow.requests)

    def test_equal_beginnings_go_to_one_member(self, by_prefix: Balancer) -> None:
        with ExitStack() as stack:
            for number in range(3):
                by_prefix.publish(f"vllm-{number}", stack.enter_context(FakeServer(token=API)).port)
            asked = [(talk, f"{talk} " * 600 + f"turn {turn}") for talk in range(30) for turn in range(5)]
            places: dict[int, Counter[str]] = {talk: Counter() for talk, _ in asked}
            for talk, prompt in asked:
                places[talk][member_of(by_prefix.ask(prompt))] += 1
            homes = {talk: seen.most_common(1)[0][0] for talk, seen in places.items()}
            # A request that comes before its forerunner is counted out may exceed the bound of one.
            assert sum(seen[homes[talk]] for talk, seen in places.items()) > 0.9 * len(asked)
            assert set(homes.values()) == {"vllm-0", "vllm-1", "vllm-2"}
            by_prefix.withdraw("vllm-0")
            moved = {talk: member_of(by_prefix.ask(f"{talk} " * 600)) for talk in homes}
        # Only the talks of the member that left have moved.
        stayed = [moved[talk] == home for talk, home in homes.items() if home != "vllm-0"]
        assert sum(stayed) > 0.9 * len(stayed)

    def test_one_beginning_does_not_overload_its_member(self, by_prefix: Balancer) -> None:
        with ExitStack() as stack:
            servers = [stack.enter_context(FakeServer(token=API)) for _ in range(2)]
            for number, server in enumerate(servers):
                server.behaviour = Behaviour(first_token_delay_s=1.0)
                by_prefix.publish(f"vllm-{number}", server.port)
            with ThreadPoolExecutor(40) as pool:
                list(pool.map(lambda _: by_prefix.ask("same " * 1000), range(40)))
        # At most half as many again as the mean of 20.
        assert sorted(server.max_in_flight for server in servers) == [10, 30]


class TestClients:
    """Clients of all kinds."""

    def test_stream_is_not_held_back(self, balancer: Balancer, fake: FakeServer) -> None:
        fake.behaviour = Behaviour(n_tokens=5, token_delay_s=0.3)
        began_s = time.monotonic()
        arrivals = [time.monotonic() - began_s for _ in balancer.ask(stream=True).iter_lines() if _]
        assert arrivals[0] < 0.25
        assert arrivals[-1] > 1.2
        assert sum(later - earlier > 0.2 for earlier, later in itertools.pairwise(arrivals)) == 4

    @pytest.mark.parametrize("stream", [False, True])
    def test_client_that_hangs_up_cancels_its_request(self, balancer: Balancer, fake: FakeServer, stream: bool) -> None:
        fake.behaviour = Behaviour(n_tokens=600, first_token_delay_s=0.1, token_delay_s=0.05)
        connection = balancer.connection()
        document = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": stream}
        connection.request("POST", "/v1/chat/completions", json.dumps(document), AUTHORIZED)
        if stream:
            connection.getresponse().read(10)
        wait_until(lambda: fake.in_flight == 1)
        connection.close()
        assert wait_until(lambda: fake.in_flight == 0) < 2
        assert len(fake.requests) == 1

    def test_request_id_is_kept_or_given(self, balancer: Balancer, fake: FakeServer) -> None:
        assert balancer.ask(headers={"X-Request-Id": "mine-1"}).headers["X-Request-Id"] == "mine-1"
        given = balancer.ask(headers={"X-Request-Id": "two words"}).headers["X-Request-Id"]
        assert len(given) == 36

    def test_pipelined_requests_are_answered_in_their_order(self, balancer: Balancer, fake: FakeServer) -> None:
        fake.behaviour = Behaviour(reply=lambda payload: str(payload["messages"][0]["content"]))
        packet = b""
        for number in range(5):
            body = json.dumps({"model": "m", "messages": [{"role": "user", "content": f"number-{number}"}]}).encode()
            packet += b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n" % API.encode()
            packet += b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        with socket.create_connection((balancer.host, balancer.port), 10) as connection:
            connection.sendall(packet)
            said = b""
            while said.count(b"number-") < 5:
                said += connection.recv(65536)
        places = [said.index(b"number-%d" % number) for number in range(5)]
        assert places == sorted(places)

    @pytest.mark.parametrize("size", [200_000, 300_000, 8_000_000])
    def test_long_prompt_arrives_whole(self, balancer: Balancer, fake: FakeServer, size: int) -> None:
        prompt = "0123456789" * (size // 10)
        assert balancer.ask(prompt).status_code == 200
        assert fake.requests[0].payload["messages"][0]["content"] == prompt

    def test_slow_clients_hold_up_nobody_and_are_sent_away(self, balancer: Balancer, fake: FakeServer) -> None:
        head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\n"
        token = b"Authorization: Bearer %s\r\n" % API.encode()
        with ExitStack() as stack:
            slow = [
                stack.enter_context(socket.create_connection((balancer.host, balancer.port), 20)) for _ in range(300)
            ]
            for number, connection in enumerate(slow):
                connection.sendall(head if number % 2 else head + token + b"Content-Length: 1000\r\n\r\n{")
            began_s = time.monotonic()
            assert {balancer.ask().status_code for _ in range(20)} == {200}
            assert time.monotonic() - began_s < 2
            assert {connection.recv(4096)[:12] for connection in slow} == {b"HTTP/1.1 408"}
            assert time.monotonic() - began_s < 15
        # None of them has reached the member.
        assert len(fake.requests) == 20

    def test_smuggled_request_is_refused(self, balancer: Balancer, fake: FakeServer) -> None:
        head = b"POST /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n" % API.encode()
        for lengths in (b"Content-Length: 5\r\nContent-Length: 6\r\n", b"Transfer-Encoding: chunked, chunked\r\n"):
            with socket.create_connection((balancer.host, balancer.port), 10) as connection:
                connection.sendall(head + lengths + b"\r\n0\r\n\r\nGET /pause HTTP/1.1\r\n\r\n")
                assert connection.recv(4096).startswith(b"HTTP/1.1 400")
        assert not fake.connections


class TestProgram:
    """The program's own start and end."""

    def test_term_lets_requests_under_way_end(self, balancer: Balancer, fake: FakeServer) -> None:
        fake.behaviour = Behaviour(n_tokens=10, token_delay_s=0.1)
        under_way = balancer.ask(stream=True)
        balancer.process.terminate()
        wait_until(lambda: not _accepts(balancer))
        assert balancer.process.poll() is None
        assert under_way.content.endswith(b"[DONE]\n\n")
        assert balancer.process.wait(10) == 0

    def test_haproxy_ends_with_its_follower(self, balancer: Balancer) -> None:
        balancer.process.kill()
        assert wait_until(lambda: not _accepts(balancer)) < 3

    def test_follower_ends_with_haproxy(self, balancer: Balancer) -> None:
        (haproxy,) = _children(balancer.process.pid)
        subprocess.run(["kill", "-9", haproxy], check=True)
        assert balancer.process.wait(5) == -signal.SIGKILL % 256

    def test_port_in_use_is_said(self, balancer: Balancer, tmp_path: Path) -> None:
        argv = ["--endpoints-dir", str(tmp_path), "--status-dir", str(tmp_path), "--service", "vllm"]
        argv += ["--port", str(balancer.port)]
        ended = _run([*argv, "--api-token-file", str(tmp_path / "api")])
        assert ended.returncode == 1
        assert "Address already in use" in ended.stderr

    def test_missing_haproxy_is_said(self, tmp_path: Path) -> None:
        (tmp_path / "token").write_text(API)
        argv = ["--endpoints-dir", str(tmp_path), "--status-dir", str(tmp_path), "--service", "vllm"]
        argv += ["--port", "1", "--haproxy", "/nowhere/haproxy"]
        ended = _run([*argv, "--api-token-file", str(tmp_path / "token")])
        assert ended.returncode == 2
        assert "'/nowhere/haproxy' cannot be run" in ended.stderr

    def test_ipv6(self, tmp_path: Path) -> None:
        with Balancer(tmp_path, host="::1") as balancer, FakeServer(token=API) as server:
            balancer.publish("vllm", server.port)
            assert balancer.ask().status_code == 200


def _run(argv: list[str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "services.balancer", *argv]
    return subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=30)


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def _health(balancer: Balancer) -> int:
    return requests.get(f"{balancer.url}/health", timeout=5).status_code


def _accepts(balancer: Balancer) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((balancer.host, balancer.port)) == 0
