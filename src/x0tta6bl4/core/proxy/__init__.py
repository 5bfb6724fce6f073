"""The proxy's composite machine: links, sessions, policy and revocations of one node.

`composite.Proxy(...)` hears and says (see `words` for each):

    event                               from
    Tick, ClockSet(unix_us)             the driver
    Received(AGENT, Full | Delta)       the agent's socket
    AgentAlive(alive)                   core.links: the agent came or went
    Received(node, Hello), Counted      core.links: a verified hello; counted traffic
    OpenSession(...)                    the endpoint: a first stream to this target and node
    Done, Failed                        answers to Dial
    Accepted, Heard, CircuitLost, Wrote, Owing, Broken, Withdraw
                                        core.session.facts, from the endpoint

    effect                              what to do with it
    Send(AGENT, message)                write to the agent's socket
    Send(node, Hello)                   send a hello
    Changed(puts, drops)                items came or went: contexts, listeners, neighbours
    Dial(token, session, path, source, target)
                                        set a circuit up and answer with Done(token, Up) or Failed
    CancelDial, SendFrame, CloseCircuit, SessionOpened, Joined, CircuitsGone, SessionEnded
                                        core.session.facts

Its tables answer questions at once: `open`, `resolve`, `replicas`, `service`, `item`.
"""
