# ruff: noqa
# mypy: ignore-errors
import pulumi
from dyn.thing import Thing

config = pulumi.Config()


class Pair(pulumi.ComponentResource):
    def __init__(self, name: str) -> None:
        super().__init__("sample:index:Pair", name)
        child = pulumi.ResourceOptions(parent=self)
        self.first = Thing("first", name=config.get("first") or "a", size=config.get_int("size") or 1, opts=child)
        self.second = Thing("second", name=config.get("second") or "b", size=2, after=self.first.token, opts=child)
        self.register_outputs({"token": self.second.token})


pair = Pair("pair")
if config.get("other"):
    pulumi.export("theirs", pulumi.StackReference(config.require("other")).get_output("size"))
pulumi.export("size", pair.first.size)
pulumi.export("token", pair.second.token)
