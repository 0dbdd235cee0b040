"""The faults of a scenario, put on the clock of a world."""

from simulator.scenario import CrashFault, PartitionFault, PauseFault, Scenario, ScenarioError
from simulator.world import World


def plan_faults(world: World, scenario: Scenario) -> None:
    """Have everything go wrong at its time."""
    for number, fault in enumerate(scenario.faults):
        match fault:
            case CrashFault():
                for name in scenario.select(fault.nodes):
                    world.at(fault.at_s, world.kill, name)
            case PauseFault():
                for name in scenario.select(fault.nodes):
                    world.at(fault.at_s, world.network.pause, name)
                    world.at(fault.at_s + fault.for_s, world.network.resume, name)
            case PartitionFault():
                groups = [scenario.select(each) for each in fault.groups]
                world.at(fault.at_s, world.network.partition, *groups)
                if fault.for_s < scenario.duration_s:
                    world.at(fault.at_s + fault.for_s, world.network.heal)
            case _:
                raise ScenarioError("no such fault yet", ("faults", number, "kind"))
