"""A sandboxer of one's own: each sandbox is a process in IPC, UTS and network namespaces that are its alone."""

from atoll import sandbox as s


class NamespaceSandboxer(s.Controller):
    def __init__(self) -> None:
        self.lives = s.Lives()  # who is created, runs, has ended

    async def create(self, sandbox: s.Sandbox, options: s.CreateOptions) -> None:
        self.lives.add(sandbox, options, takes=["netns_path"])

    async def start(self, sandbox_id: str) -> s.ControllerInstance:
        netns = self.lives[sandbox_id].options.netns_path
        network = ["nsenter", f"--net={netns}", "unshare"] if netns else ["unshare", "--net"]
        return await self.lives.run(sandbox_id, *network, "--ipc", "--uts", "cat", prompt=b"\n")

    async def stop(self, sandbox_id: str, timeout_s: float | None = None) -> None:
        await self.lives.stop(sandbox_id, timeout_s)

    async def status(self, sandbox_id: str, verbose: bool = False) -> s.ControllerStatus:
        return self.lives[sandbox_id].status(verbose)

    async def shutdown(self, sandbox_id: str) -> None:
        await self.lives.shutdown(sandbox_id)


if __name__ == "__main__":
    s.run(NamespaceSandboxer, "unix:///run/namespaces.sock")
