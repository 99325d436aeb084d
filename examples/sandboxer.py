"""A sandboxer of one's own: each sandbox is a process in namespaces that are its alone."""

from atoll import sandbox as s


class NamespaceSandboxer(s.Controller):
    def __init__(self) -> None:
        self.lives = s.Lives()  # who is created, runs, has ended

    async def create(self, sandbox: s.Sandbox, options: s.CreateOptions) -> None:
        self.lives.add(sandbox, options, takes=["netns_path", s.POD_CONFIG])

    async def start(self, sandbox_id: str) -> s.ControllerInstance:
        return await self.lives.unshare(sandbox_id, "cat", prompt=b"\n")  # PID, IPC, UTS, network

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        await self.lives.stop(sandbox_id, timeout_s)

    async def wait(self, sandbox_id: str) -> s.ExitStatus:
        return await self.lives[sandbox_id].wait()

    async def status(self, sandbox_id: str, verbose: bool = False) -> s.ControllerStatus:
        return self.lives[sandbox_id].status(verbose)

    async def shutdown(self, sandbox_id: str) -> None:
        await self.lives.shutdown(sandbox_id)


if __name__ == "__main__":
    s.run(NamespaceSandboxer, "unix:///run/namespaces.sock")
