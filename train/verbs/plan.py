"""`elastic-jax plan`: whether router training fits on given hardware, and what it costs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from elastic_jax.cli.args import parse_verb, required
from elastic_jax.settings import settings_yaml
from train.plan.chips import parse_topology
from train.plan.settings import PlanSettings

SHOWN = 5
"""How many plans a search prints beside the best one."""


def main(argv: Sequence[str]) -> int:
    """Say whether router training fits on a slice or on GPUs and what it costs; exit code 1 where it does not fit."""
    asked = parse_verb(PlanSettings, argv, verb="plan", summary=str(main.__doc__))
    settings = asked.settings
    name = required(settings.model, "--model NAME", "model to plan for")
    topology = parse_topology(required(settings.topology, "--topology NAME:SIZES", "topology"))
    if asked.dry_run:
        print(settings_yaml(settings), end="")
        return 0

    from dataclasses import replace

    from elastic_jax.sharding.rules import explain
    from train.plan.compile import compile_step, tpu_mesh
    from train.plan.estimate import default_sparse_share
    from train.plan.report import compiled_text, plan_text, plan_values
    from train.plan.search import make_plan, search
    from train.plan.shapes import model_shape, stored_shapes

    config = settings.training()
    model = replace(model_shape(name), router=config.router)
    share = default_sparse_share(config) if settings.sparse_share is None else settings.sparse_share
    plans = search(model, config, topology, share) if settings.search else [make_plan(model, config, topology, share)]
    if not plans:
        answer: dict[str, Any] = {"topology": topology.name, "fits": False}
        print(json.dumps(answer) if settings.json else f"no mesh of {topology.name} fits")
        return 1
    best = plans[0]
    compiled = None
    if settings.compile:
        compiled = compile_step(model, best.config, tpu_mesh(best.config, topology))
    fits = best.fits if compiled is None else not compiled.refusal
    if settings.json:
        answer = plan_values(best, settings.price) | {"fits": fits}
        if compiled is not None:
            answer["compiled"] = compiled._asdict()
        print(json.dumps(answer, indent=2))
        return 0 if fits else 1
    print(plan_text(best, settings.price))
    if settings.search:
        print("flags: " + " ".join(plan_values(best, settings.price)["overrides"]))
        for plan in plans[1 : 1 + SHOWN]:
            total = plan.memory.total / 2**30
            flags = " ".join(plan_values(plan, None)["overrides"])
            print(f"  {plan.work.seconds:8.1f} s {total:8.2f} GiB  {flags}")
    if settings.explain:
        print(f"\n{explain(stored_shapes(model, config.dtype, config.weights), best.mesh)}")
    if compiled is not None:
        print(f"\n{compiled_text(compiled)}\n\n{'fits' if fits else 'does not fit'}, by the compiler")
    return 0 if fits else 1
