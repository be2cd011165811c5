"""Find loops and conditions of TensorFlow 1 among the steps of a region, and what is needed at all.

TensorFlow 1 writes control flow as dataflow. A loop is a frame: Enter sends a value in, Exit out, NextIteration to the
next round. A condition sends values through Switch into one of two branches, and Merge takes the one that arrives.

    frame      the loop of a step: that of its inputs; Enter goes into one, Exit leaves it
    guards     the predicates that decide whether a step runs, each with the branch: those of its inputs, plus the
               predicate of a Switch for what its outputs feed. A Merge has those that its inputs agree on
    predicate  of a Merge: the one for which its inputs are in opposite branches

All passes go over the steps once, in their order.
"""

from torch_tfckpt.errors import UnimplementedError
from torch_tfckpt.graph_run.steps import (
    ASSIGNMENTS,
    ENTERS,
    EXITS,
    MERGES,
    NO_GUARDS,
    TABLE_CHANGES,
    GraphStep,
    Guard,
    LoopFrame,
    Region,
    Source,
    known_constant,
    needed,
    without_identities,
)

_STATEFUL_REGIONS = frozenset({"If", "While", "Case"})
_CHANGES = ASSIGNMENTS | TABLE_CHANGES


def analyse(region: Region) -> None:
    """Set frames, guards and predicates of a region's steps; find the needed ones, and those of each loop.

    Raises:
        UnimplementedError: a needed step mixes loops or branches in a way that no TensorFlow API writes.
    """
    frames: dict[tuple[LoopFrame | None, str], LoopFrame] = {}
    for step in region.steps:
        _set_frame(step, frames)
        _set_guards(step)
    _set_effects(region)
    region.live = _live(region)
    region.in_loop, region.exits = {}, {}
    for step in region.steps:
        if step in region.live:
            if step.fault:
                raise UnimplementedError(f"{step}: {step.fault}")
            region.in_loop.setdefault(step.frame, []).append(step)
            if step.op in EXITS:
                region.exits.setdefault(step.inputs[0][0].frame, []).append(step)


def _set_effects(region: Region) -> None:
    """Mark what changes variables and tables, and what comes after it. A loop does if anything inside it does."""
    changing = [step for step in region.steps if step.op in _CHANGES or step.op in _STATEFUL_REGIONS]
    loops = set()
    for step in changing:
        frame = step.frame
        while frame is not None:
            loops.add(frame)
            frame = frame.parent
    found = set(changing)
    for step in region.steps:
        step.effectful = (
            step in found
            or (step.frame in loops and step.is_loop_merge())
            or any(each.effectful for each in step.after)
            or any(each.effectful for each, _ in step.inputs)
        )


def _set_frame(step: GraphStep, frames: dict[tuple[LoopFrame | None, str], LoopFrame]) -> None:
    found: LoopFrame | None = None
    for source in (*(each for each, _ in step.inputs), *step.after):
        frame = source.frame
        if frame is found or frame is None:
            continue
        if found is None or found.encloses(frame):
            found = frame
        elif not frame.encloses(found) and not (step.is_loop_merge()):
            step.fault = "its inputs come from two different loops"
    if step.op in ENTERS:
        name = step.attributes["frame_name"].s.decode("utf-8", "replace") if "frame_name" in step.attributes else ""
        # The frame of a call is another one in each call.
        name = f"{step.name[: len(step.name) - len(step.node.name)] if step.node is not None else ''}{name}"
        found = frames.setdefault((found, name), LoopFrame(name, found))
    elif step.op in EXITS:
        if found is None:
            step.fault = "it leaves a loop, but is not in one"
        else:
            found = found.parent
    step.frame = found


def _set_guards(step: GraphStep) -> None:
    if step.op in MERGES and not step.is_loop_merge():
        _set_branches(step)
        return
    guards = NO_GUARDS
    for source in step.inputs:
        if source[0].op in MERGES and step.op in MERGES and source[0] is step:
            continue
        found, dead = guards_of(source)
        step.dead |= dead
        guards = _union(guards, found)
    for each in step.after:
        step.dead |= each.dead
        guards = _union(guards, each.guards)
    step.guards = guards


def guards_of(source: Source) -> tuple[frozenset[Guard], bool]:
    """Return the guards of what an output feeds, and whether it never has a value."""
    step, index = source
    if not step.is_condition_switch():
        return step.guards, step.dead
    predicate = without_identities(step.inputs[1])
    known = known_branch(predicate)
    if known is not None:
        return step.guards, step.dead or known != index
    return step.guards | {(predicate, index)}, step.dead


def known_branch(predicate: Source) -> int | None:
    """Return the branch that runs, if the predicate is a known value."""
    known = known_constant(predicate)
    return None if known is None else int(bool(known))


def _union(guards: frozenset[Guard], more: frozenset[Guard]) -> frozenset[Guard]:
    if more is guards or not more or more <= guards:
        return guards
    return more if guards <= more else guards | more


def _set_branches(step: GraphStep) -> None:
    """Find the predicate of a Merge that ends a condition."""
    found = [guards_of(source) for source in step.inputs]
    before, is_dead = NO_GUARDS, False
    for each in step.after:
        before, is_dead = _union(before, each.guards), is_dead or each.dead
    alive = [(source, guards) for source, (guards, dead) in zip(step.inputs, found, strict=True) if not dead]
    if not alive:
        step.dead = True
        return
    step.dead = is_dead
    if len(alive) == 1:
        step.alias, guards = alive[0]
        step.guards = _union(guards, before)
        return
    if len(alive) != 2:
        step.fault = f"it merges {len(alive)} branches"
        return
    (first, guards), (second, others) = alive
    for predicate, branch in guards:
        if (predicate, 1 - branch) in others:
            step.predicate = predicate
            step.branches = (second, first) if branch else (first, second)
            step.guards = _union((guards & others), before)
            return
    step.fault = "no predicate decides which of its inputs has a value"


def _live(region: Region) -> set[GraphStep]:
    live: set[GraphStep] = set()
    stack = [*(step for step, _ in region.wanted()), *(step for step in region.targets if step.effectful)]
    while stack:
        step = stack.pop()
        if step in live:
            continue
        live.add(step)
        stack.extend(each for each in needed(step) if each not in live)
    return live
