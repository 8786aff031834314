# mypy: ignore-errors
"""Declares the toys of the stack's configuration: `[{name, props, needs: [names], opts: {…}}]`."""

import json

import pulumi
from toys import Toy

config = pulumi.Config()
if text := config.get("log"):
    pulumi.log.info(text)
if text := config.get("run_error"):
    raise pulumi.RunError(text)
made = {}
for spec in json.loads(config.get("toys") or "[]"):
    opts = {**spec.get("opts", {})}
    for key in ("deleted_with", "parent"):
        if key in opts:
            opts[key] = made[opts[key]]
    if "depends_on" in opts:
        opts["depends_on"] = [made[name] for name in opts["depends_on"]]
    props = {key: made[value[1:]].answer if str(value)[:1] == "@" else value for key, value in spec["props"].items()}
    made[spec["name"]] = Toy(spec["name"], props, pulumi.ResourceOptions(**opts))
    pulumi.export(spec["name"], made[spec["name"]].answer)
if other := config.get("other"):
    pulumi.export("theirs", pulumi.runtime.invoke("pulumi:pulumi:readStackOutputs", {"name": other}).value["outputs"])
pulumi.export("hidden", pulumi.Output.secret("shh"))
if config.get("nested"):
    pulumi.export("nested", {"open": 1, "deep": [{"hidden": pulumi.Output.secret("shh")}]})
pulumi.export("config", config.get_object("settings"))
