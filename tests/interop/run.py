#!/usr/bin/env python3
"""makima as others meet it: the real grpcurl, a Python client generated from the protos, the real Claude Code CLI.

    run.py ── makima server, makima daemon (real processes, temporary directory)
       ├── grpcurl ───────────────> server    reflection, health, contracts, explain, error details
       ├── Python (grpcio-tools) ─> server    apply, watch
       └── model_server.py <─────── claude <── daemon    a scripted model: works, or is at its limit

Run by `make interop` with the Python of the cache, which has grpcurl beside it. Prints `N passed, N failed`; fails if
anything failed. Arguments after the options choose checks by a part of their name.
"""

import argparse
import datetime
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

import model_server  # noqa: E402  (it stands beside this file)
from world import DEADLINE_S, Failed, World, check, eventually  # noqa: E402

PROTO = HERE.parent.parent / "proto"
GRPCURL = Path(sys.executable).parent / "grpcurl"

CHECKS = []


def checked(function):
    """Adds a function to what is run."""
    CHECKS.append(function)
    return function


class Interop:
    """What the checks share: the world, the model, the generated client."""

    def __init__(self, world, model, generated, config_of):
        self.world = world
        self.model = model
        self.generated = generated
        # The configuration of a daemon whose `claude` talks to that mode of the model.
        self.config_of = config_of

    # === grpcurl ===

    def grpcurl(self, *args, data=None, key="owner", fails=False):
        """Runs grpcurl against the server by reflection; answers standard output and standard error."""
        command = [str(GRPCURL), "-plaintext", "-max-time", str(DEADLINE_S)]
        if key:
            secret = key if key.startswith("mk_") else self.world.key(key)
            command += ["-H", f"authorization: Bearer {secret}"]
        if data is not None:
            command += ["-d", json.dumps(data)]
        command += [self.world.address, *args]
        done = subprocess.run(
            command, env=self.world.env(), capture_output=True, text=True, timeout=DEADLINE_S + 10, check=False
        )
        check(
            (done.returncode != 0) == fails,
            f"grpcurl {' '.join(args)}: exit {done.returncode}\n{done.stdout}{done.stderr}",
        )
        return done.stdout, done.stderr

    def call(self, method, data, **more):
        """One call; answers its JSON."""
        return json.loads(self.grpcurl(method, data=data, **more)[0])

    def stream(self, method, data):
        """A call that streams; answers the JSON of each message."""
        text, decoder, messages = self.grpcurl(method, data=data)[0].strip(), json.JSONDecoder(), []
        while text:
            message, end = decoder.raw_decode(text)
            messages.append(message)
            text = text[end:].lstrip()
        return messages

    # === claude ===

    def attempt_of(self, task_id):
        """The task and its only attempt, as the command line tells them."""
        details = self.world.json("task", "get", task_id)[0]
        check(len(details["attempts"]) == 1, "attempts:", details["attempts"])
        return details["task"], details["attempts"][0]


def shell(name, script, depends_on=()):
    """A task of the shell agent, in JSON."""
    return {"name": name, "plan": script, "agent": "shell", "dependsOn": list(depends_on)}


# === grpcurl ===


@checked
def grpcurl_lists_every_service(it):
    out, _ = it.grpcurl("list", key=None)
    wanted = {
        "grpc.health.v1.Health",
        "makima.v1.ContractService",
        "makima.v1.DaemonService",
        "makima.v1.KeyService",
        "makima.v1.TaskService",
    }
    check(wanted <= set(out.split()), "listed:", out)


@checked
def grpcurl_describes_services_messages_and_error_details(it):
    out, _ = it.grpcurl("describe", "makima.v1.ContractService", key=None)
    check("rpc CreateContract" in out and "stream .makima.v1.WatchContractResponse" in out, out)
    out, _ = it.grpcurl("describe", "makima.v1.TaskSpec", key=None)
    check("depends_on" in out, out)
    out, _ = it.grpcurl("describe", "grpc.health.v1.Health", key=None)
    check("rpc Check" in out, out)
    for detail in ("BadRequest", "ErrorInfo", "RetryInfo"):
        out, _ = it.grpcurl("describe", f"google.rpc.{detail}", key=None)
        check(f"message {detail}" in out, out)


@checked
def grpcurl_asks_for_health_without_a_key(it):
    check(it.call("grpc.health.v1.Health/Check", {}, key=None) == {"status": "SERVING"})


@checked
def grpcurl_without_the_right_key_is_refused(it):
    method = "makima.v1.ContractService/ListContracts"
    for key in (None, "mk_owner_0000000000000000000000000000000000000000000"):
        _, err = it.grpcurl(method, data={}, key=key, fails=True)
        check("Code: Unauthenticated" in err, err)
    _, err = it.grpcurl(method, data={}, key="daemon", fails=True)
    check("Code: PermissionDenied" in err, err)


@checked
def grpcurl_creates_a_contract_and_watches_it_to_its_end(it):
    repository = it.world.repository("by-grpcurl")
    created = it.call("makima.v1.ContractService/CreateContract", {
        "name": "by grpcurl",
        "repository": str(repository),
        "tasks": [
            shell("schema", "mkdir migrations; echo 'CREATE TABLE users ();' > migrations/001.sql"),
            shell("types", "test -f migrations/001.sql; echo types > types.txt", ["schema"]),
        ],
    })
    check([task["spec"]["name"] for task in created["tasks"]] == ["schema", "types"], created)
    contract_id = created["contract"]["contractId"]
    steps = it.stream(
        "makima.v1.ContractService/WatchContract", {"contractId": contract_id, "untilEnd": True}
    )
    check(any("snapshotComplete" in step for step in steps), steps)
    # What was over before the watch began is in its snapshot.
    ends = [task["spec"]["name"] for step in steps for task in step.get("tasks", {}).get("tasks", [])
            if task["status"] == "TASK_STATUS_DONE"]
    ends += [step["change"]["taskName"] for step in steps
             if step.get("change", {}).get("status") == "TASK_STATUS_DONE" and "taskName" in step["change"]]
    check(list(dict.fromkeys(ends)) == ["schema", "types"], "ended:", ends, steps)
    contract = it.call("makima.v1.ContractService/GetContract", {"contractId": contract_id})["contract"]
    check(contract["status"] == "CONTRACT_STATUS_DONE", contract)
    task = it.call("makima.v1.TaskService/GetTask", {"taskId": created["tasks"][1]["taskId"]})["task"]
    files = it.world.git(repository, "ls-tree", "-r", "--name-only", task["resultCommit"]).split()
    check(files == ["README.md", "migrations/001.sql", "types.txt"], files)


@checked
def grpcurl_explains_a_pending_task(it):
    repository = it.world.repository("pending")
    task = {**shell("far", "true"), "labels": ["gpu"]}
    created = it.call("makima.v1.ContractService/CreateContract", {
        "name": "pending", "repository": str(repository), "tasks": [task, shell("later", "true", ["far"])],
    })
    far, later = (task["taskId"] for task in created["tasks"])
    answer = it.call("makima.v1.TaskService/ExplainTask", {"taskId": far})
    check(answer["task"]["pendingReason"] == "PENDING_REASON_NO_MATCHING_DAEMON", answer)
    check(answer.get("summary") and "gpu" in json.dumps(answer.get("daemons")), answer)
    answer = it.call("makima.v1.TaskService/ExplainTask", {"taskId": later})
    check(answer["task"]["pendingReason"] == "PENDING_REASON_DEPENDENCIES", answer)
    check([edge["name"] for edge in answer["waitingFor"]] == ["far"], answer)
    it.call("makima.v1.ContractService/CancelContract", {"contractId": created["contract"]["contractId"]})


@checked
def grpcurl_prints_every_field_violation_of_a_bad_request(it):
    _, err = it.grpcurl("makima.v1.ContractService/CreateContract", fails=True, data={
        "name": "bad",
        "repository": "/nowhere",
        "tasks": [
            shell("a", "true", ["b"]),
            shell("b", "true", ["a"]),
            shell("c", "true", ["nobody"]),
            shell("d", ""),
        ],
    })
    check("Code: InvalidArgument" in err, err)
    check("google.rpc.BadRequest" in err and "fieldViolations" in err, "no details:", err)
    check("google.rpc.ErrorInfo" in err and '"reason"' in err, "no reason:", err)
    check("cycle" in err and "nobody" in err and "plan" in err, "not every violation:", err)
    # Details that reflection cannot resolve are printed as bytes.
    check('"@error"' not in err and "unable to resolve" not in err.lower(), err)


# === Python ===


@checked
def a_generated_python_client_applies_a_contract_and_watches_it(it):
    import grpc

    contract_pb2 = importlib.import_module("makima.v1.contract_pb2")
    contract_grpc = importlib.import_module("makima.v1.contract_pb2_grpc")
    task_pb2 = importlib.import_module("makima.v1.task_pb2")
    task_grpc = importlib.import_module("makima.v1.task_pb2_grpc")

    repository = it.world.repository("by-python")
    with grpc.insecure_channel(it.world.address) as channel:
        metadata = [("authorization", f"Bearer {it.world.key('owner')}")]
        contracts, tasks = contract_grpc.ContractServiceStub(channel), task_grpc.TaskServiceStub(channel)
        request = contract_pb2.CreateContractRequest(
            request_id="from-python",
            name="by python",
            repository=str(repository),
            tasks=[
                task_pb2.TaskSpec(name="left", plan="echo left > left.txt", agent="shell"),
                task_pb2.TaskSpec(name="right", plan="echo right > right.txt", agent="shell"),
                task_pb2.TaskSpec(name="both", plan="cat left.txt right.txt > both.txt", agent="shell",
                                  depends_on=["left", "right"]),
            ],
        )
        created = contracts.CreateContract(request, metadata=metadata, timeout=DEADLINE_S)
        again = contracts.CreateContract(request, metadata=metadata, timeout=DEADLINE_S)
        check(again.contract.contract_id == created.contract.contract_id, "made twice:", str(again.contract))
        snapshot, done = set(), []
        for step in contracts.WatchContract(
            contract_pb2.WatchContractRequest(contract_id=created.contract.contract_id, until_end=True),
            metadata=metadata,
            timeout=DEADLINE_S,
        ):
            kind = step.WhichOneof("kind")
            if kind == "tasks":
                for task in step.tasks.tasks:
                    snapshot.add(task.spec.name)
                    if task.status == task_pb2.TASK_STATUS_DONE:
                        done.append(task.spec.name)
            elif kind == "change" and step.change.task_id and step.change.status == task_pb2.TASK_STATUS_DONE:
                done.append(step.change.task_name)
        check(snapshot == {"left", "right", "both"}, "snapshot:", snapshot)
        check(set(done) == snapshot and done[-1] == "both", "done:", done)
        both = tasks.GetTask(
            task_pb2.GetTaskRequest(task_id=created.tasks[2].task_id), metadata=metadata, timeout=DEADLINE_S
        )
        text = it.world.git(repository, "show", f"{both.task.result_commit}:both.txt")
        check(text == "left\nright\n", "both.txt:", text)
        try:
            tasks.GetTask(task_pb2.GetTaskRequest(task_id="not an id"), metadata=metadata, timeout=DEADLINE_S)
            raise Failed("a bad id was not refused")
        except grpc.RpcError as error:
            check(error.code() in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND), str(error.code()))


# === Claude Code ===


@checked
def claude_code_does_a_task(it):
    repository = it.world.repository("by-claude")
    plan = "Say hello in a file.\n\n```sh\nprintf 'hello from claude\\n' > hello.txt\n```\n"
    contract = it.world.dir / "claude.yaml"
    contract.write_text(
        f"name: by claude\nrepository: {repository}\nagent: claude\ntasks:\n"
        f"  hello:\n    plan: {json.dumps(plan)}\n"
        "  after:\n    agent: shell\n    plan: cat hello.txt > copy.txt\n    depends_on: [hello]\n",
        encoding="utf-8",
    )
    lines = it.world.json("contract", "apply", contract, "--wait")
    by_name = {line["spec"]["name"]: line["task_id"] for line in lines if line.get("kind") == "task"}
    check(set(by_name) == {"hello", "after"}, lines)
    task, attempt = it.attempt_of(by_name["hello"])
    check(task["status"] == "DONE", task)
    # The file is committed on the attempt's branch, which stands in the repository, and dependents build on it.
    text = it.world.git(repository, "show", f"{attempt['branch']}:hello.txt")
    check(text == "hello from claude\n", "hello.txt:", text)
    check(it.world.git(repository, "rev-parse", attempt["branch"]).strip() == task["result_commit"], task)
    after, _ = it.attempt_of(by_name["after"])
    check(it.world.git(repository, "show", f"{after['result_commit']}:copy.txt") == text, after)
    # What it used: two requests of the script.
    check(len(attempt["agent_session_id"]) == 36, "session:", attempt["agent_session_id"])
    check(attempt["agent_version"].startswith("2.1.197"), "version:", attempt["agent_version"])
    check(attempt["last_message"] == model_server.FINAL_TEXT, "last message:", attempt["last_message"])
    usage = attempt["usage"]
    check(usage["cost_micro_usd"] > 0, usage)
    seen = {name: usage[name] for name in ("input_tokens", "output_tokens", "cache_read_tokens", "cache_write_tokens", "turns")}
    check(seen == {
        "input_tokens": 2 * model_server.INPUT_TOKENS,
        "output_tokens": 2 * model_server.OUTPUT_TOKENS,
        "cache_read_tokens": 2 * model_server.CACHE_READ_TOKENS,
        "cache_write_tokens": 2 * model_server.CACHE_WRITE_TOKENS,
        "turns": 2,
    }, usage)
    # What it wrote can be read, and is the real CLI's own.
    logs = it.world.cli("task", "logs", by_name["hello"])
    check(logs.returncode == 0 and model_server.FINAL_TEXT in logs.stdout, f"exit {logs.returncode}", logs.stdout, logs.stderr)


def at_its_limit(it, agent):
    """Runs a task of that profile until it waits for the reset; answers task and attempt."""
    repository = it.world.repository(f"limited-{agent}")
    task_id = it.world.json("run", "Do something.", "--repo", repository, "--agent", agent)[0]["task_id"]

    def limited():
        it.world.alive()
        details = it.world.json("task", "get", task_id)[0]
        return details["attempts"] and details["attempts"][-1]["status"] == "ENDED"

    eventually("the attempt has ended", limited)
    task, attempt = it.attempt_of(task_id)
    check(attempt["failure_class"] == "USAGE_LIMIT", attempt)
    check(task["status"] == "PENDING" and task["pending_reason"] == "USAGE_LIMIT", task)
    check(task["retry_count"] == 0, "a limit counts against the retries:", task)
    check(task["not_before"], "it does not say until when:", task)
    it.world.json("task", "cancel", task_id)
    return task, attempt


@checked
def claude_code_at_its_usage_limit_waits_for_the_reset(it):
    before = time.time()
    task, _ = at_its_limit(it, "claude-limited")
    reset = datetime.datetime.fromisoformat(task["not_before"].replace("Z", "+00:00")).timestamp()
    away = reset - before
    check(abs(away - model_server.RESET_AFTER_S) < 300, f"the reset is {away:.0f} s away:", task)


@checked
def claude_code_with_an_api_key_at_its_limit_is_a_usage_limit_too(it):
    at_its_limit(it, "claude-limited-key")


# === Claude Code, interrupted ===


LONG_PLAN = "Begin a long piece of work in this repository."


class Long:
    """A world of its own in which Claude Code is in the middle of a task, on a machine of its own."""

    def __init__(self, it, mode):
        self.model, self.mode = it.model, mode
        self.world = World(it.world.makima)
        self.config = it.config_of(mode)

    def __enter__(self):
        self.world.__enter__()
        return self

    def __exit__(self, kind, value, trace):
        # What is held must not outlive the check.
        self.model.go_on(self.mode)
        if kind is not None:
            self.world.print_logs()
        self.world.__exit__(kind, value, trace)

    def begin(self):
        """Starts the task on machine `a`, and waits until its second request is held."""
        world = self.world
        world.start_server("--heartbeat-interval", "300ms", "--lost-after", "2s")
        self.origin = world.bare("origin")
        world.start_daemon("a", self.config, machine=True)
        contract = world.dir / "long.yaml"
        contract.write_text(
            f"name: long\nrepository: {self.origin.as_uri()}\nagent: claude\n"
            "limits: {rerun_after: 0s, checkpoint_every: 1s}\n"
            f"tasks:\n  long:\n    plan: {json.dumps(LONG_PLAN)}\n",
            encoding="utf-8",
        )
        world.json("contract", "apply", contract)
        self.task_id = world.json("task", "list")[0]["task_id"]

        def held():
            world.alive()
            return self.asked()[1:]

        eventually("the agent has asked a second time", held)
        answer = text_of_result(model_server.tool_results(self.asked()[1])[0])
        self.commit = answer.split()[-1]
        check(len(self.commit) == 40, "the first answer:", answer)

    def asked(self):
        """The conversations that the model has seen."""
        return self.model.asked(self.mode)

    def checkpointed(self):
        """Waits until the server has a checkpoint of the files and of the conversation up to the held request."""
        world, tries = self.world, iter(range(10_000))

        def whole():
            world.alive()
            found = world.json("task", "checkpoints", self.task_id)
            check(found and found[0]["session_id"], found)
            into = world.dir / f"look-{next(tries)}"
            made = world.json("task", "restore", found[0]["checkpoint_id"], "--into", into, "--transcript", f"{into}.jsonl")[0]
            check(made["head"] == self.commit and (into / "uncommitted.txt").exists(), made)
            return "tool_result" in Path(f"{into}.jsonl").read_text(encoding="utf-8") and found[0]

        return eventually("a checkpoint of the work and of the conversation is stored", whole)

    def again(self):
        """Waits until another attempt has asked the model, and answers what it said."""
        before = len(self.asked())

        def more():
            self.world.alive()
            return self.asked()[before:]

        return eventually("another attempt has asked the model", more)[0]

    def ends_well(self):
        """Lets the model go on; the task is done, and its result has all that was made. Answers task and attempts."""
        world = self.world
        self.model.go_on(self.mode)

        def done():
            world.alive()
            details = world.json("task", "get", self.task_id)[0]
            check(details["task"]["status"] not in ("FAILED", "CANCELLED"), details)
            return details["task"]["status"] == "DONE" and details

        details = eventually("the task is done", done)
        result = details["task"]["result_commit"]
        into = world.dir / "result"
        world.json("task", "restore", self.task_id, "--into", into)
        check(world.git(into, "rev-parse", "HEAD").strip() == result, "the result:", result)
        world.git(into, "merge-base", "--is-ancestor", self.commit, result)
        for name in ("committed", "uncommitted", "second"):
            text = world.git(into, "show", f"{result}:{name}.txt")
            check(text == f"{name}\n", name, text)
        return details["task"], details["attempts"]


def text_of_result(block):
    """What a tool has answered."""
    content = block["content"]
    return content if isinstance(content, str) else model_server.text_of(content)


def conversation_text(messages):
    """All that was said in a conversation."""
    return "\n".join(model_server.text_of(message["content"]) for message in messages)


@checked
def claude_code_goes_on_on_another_machine(it):
    with Long(it, "long-travel") as long:
        long.begin()
        checkpoint = long.checkpointed()
        tool_use = long.asked()[1]
        long.world.lose_machine("a")
        long.world.start_daemon("b", long.config, machine=True)
        first = long.again()
        # The plan, what it did, and what came of it; then, that it was interrupted.
        said = conversation_text(first)
        check(LONG_PLAN in said and "You were interrupted" in said, "said:", first)
        check("What has been done already" not in said, "a new session was begun:", first)
        calls = [block for message in first if isinstance(message["content"], list)
                 for block in message["content"] if block.get("type") == "tool_use"]
        check([call["input"]["command"] for call in calls] == [model_server.FIRST], "calls:", first)
        results = [text_of_result(block) for block in model_server.tool_results(first)]
        check(results == [text_of_result(block) for block in model_server.tool_results(tool_use)], "results:", first)
        task, attempts = long.ends_well()
        check([attempt["number"] for attempt in attempts] == [1, 2] and task["daemon_name"] == "b", task, attempts)
        check(attempts[0]["agent_session_id"] == attempts[1]["agent_session_id"] == checkpoint["session_id"], attempts)
        # Nothing was asked twice: two requests there, two here.
        check(len(long.asked()) == 4, "requests:", len(long.asked()))


def with_another_session(it, mode, change, warning):
    """The agent is killed and its transcript changed: a new session is told what was done, and ends well."""
    with Long(it, mode) as long:
        long.begin()
        checkpoint = long.checkpointed()
        long.world.stop_machine("a")
        transcripts = list((long.world.machine("a") / "home").rglob(f"{checkpoint['session_id']}.jsonl"))
        check(len(transcripts) == 1, "transcripts:", transcripts)
        change(transcripts[0])
        long.world.start_daemon("a", long.config, machine=True)
        first = long.again()
        said = conversation_text(first)
        check(LONG_PLAN in said and "What has been done already" in said, "said:", first)
        check(not model_server.tool_results(first), "the old conversation is there:", first)
        _, attempts = long.ends_well()
        check(len(attempts) == 2, attempts)
        check(attempts[0]["agent_session_id"] != attempts[1]["agent_session_id"], attempts)
        check(any(warning in text for text in attempts[1]["warnings"]), "warnings:", attempts[1]["warnings"])


@checked
def claude_code_whose_transcript_is_missing_begins_a_new_session(it):
    with_another_session(it, "long-missing", os.unlink, "conversation is not here")


@checked
def claude_code_whose_session_is_rejected_begins_a_new_one(it):
    def damage(path):
        # Whole records of a kind that is a conversation, but not one that the CLI can follow.
        path.write_text('{"type":"user","message":{"role":"user","content":"nothing"}}\n', encoding="utf-8")

    with_another_session(it, "long-rejected", damage, "could not be resumed")


# === running ===


def profile(name, claude, base_url, secret):
    """The built-in profile of Claude Code, or one like it, with the scripted model for its provider."""
    variables = {
        "ANTHROPIC_BASE_URL": base_url,
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_TELEMETRY": "1",
        **secret,
    }
    like = [] if name == "claude" else ['like = "claude"']
    return "\n".join([
        f"[daemon.profiles.{name}]",
        *like,
        f"command = {json.dumps(str(claude))}",
        f"[daemon.profiles.{name}.env]",
        *(f"{key} = {json.dumps(value)}" for key, value in variables.items()),
        "",
    ])


def generate(folder):
    """A Python client from the protos, in the folder."""
    import grpc_tools

    google = Path(grpc_tools.__file__).parent / "_proto"
    protos = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}", f"-I{google}",
         f"--python_out={folder}", f"--grpc_python_out={folder}", *protos],
        check=True,
    )
    sys.path.insert(0, str(folder))


def run(given, world):
    """Runs the checks; answers how many passed and failed."""
    model = model_server.Server(log=str(world.dir / "model.log"))
    threading.Thread(target=model.serve_forever, daemon=True).start()
    base = f"http://127.0.0.1:{model.server_address[1]}"
    generated = world.dir / "generated"
    generated.mkdir()
    generate(generated)
    world.start_server()
    # Two kinds of account, which the CLI treats differently: a seat of a subscription, and a key. What is like `claude` has
    # the seat from there, so the key takes it away.
    seat = {"CLAUDE_CODE_OAUTH_TOKEN": "sk-ant-oat01-any"}
    key = {"CLAUDE_CODE_OAUTH_TOKEN": "", "ANTHROPIC_API_KEY": "any"}
    config = "[daemon]\nslots = 4\n" + "".join([
        profile("claude", given.claude, f"{base}/ok", seat),
        profile("claude-limited", given.claude, f"{base}/limit", {}),
        profile("claude-limited-key", given.claude, f"{base}/limit", key),
    ])
    daemon = world.start_daemon("interop", config)
    print(f"daemon {daemon['name']}: {', '.join(profile_text(found) for found in daemon['profiles'])}", flush=True)
    it = Interop(world, model, generated, lambda mode: profile("claude", given.claude, f"{base}/{mode}", seat))
    passed = failed = 0
    for function in CHECKS:
        if given.only and not any(part in function.__name__ for part in given.only):
            continue
        start = time.monotonic()
        try:
            world.alive()
            function(it)
        except Exception as error:  # pylint: disable=broad-except
            failed += 1
            print(f"FAILED {function.__name__}: {error}", flush=True)
            if not isinstance(error, Failed):
                traceback.print_exc()
        else:
            passed += 1
            print(f"ok {function.__name__} ({time.monotonic() - start:.1f} s)", flush=True)
    if failed:
        world.keep = True
        world.print_logs()
    return passed, failed


def profile_text(found):
    """A profile with its version, as `daemon list --json` has it."""
    return f"{found['name']} {found.get('version', '')}".strip() if isinstance(found, dict) else str(found)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--makima", required=True, help="the binary")
    parser.add_argument("--claude", required=True, help="the real Claude Code CLI")
    parser.add_argument("only", nargs="*", help="checks with one of these in their name")
    given = parser.parse_args()
    given.claude = os.path.abspath(given.claude)
    # So that the world is taken down when a runner ends us.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with World(given.makima) as world:
        try:
            passed, failed = run(given, world)
        except BaseException:
            world.print_logs()
            raise
    print(f"{passed} passed, {failed} failed")
    sys.exit(1 if failed or not passed else 0)


if __name__ == "__main__":
    main()
