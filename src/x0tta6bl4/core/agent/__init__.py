"""The agent's composite machine: records, routing and renewals of one node, behind one `handle`.

`composite.Agent(me, domain, crypto=..., seed=...)` hears and says:

    event                                   from
    Tick, ClockSet(unix_us)                 the driver
    Restore(held)                           records.words; first event of all: what `Agent.held()`
                                            said in the life before (file of mode 0600)
    Trust(bundle, expires_unix_s)           records.words; after an enrolment or a walk
    Configured(config)                      node.toml, at start and at every change
    SvidHeld(item)                          an SVID from the disk or an enrolment
    Workloads(entries, svids)               what `Agent.workloads()` said in the life before (0600)
    Done(token, SvidItem), Failed(token, reason)
                                            answers to RenewWanted
    NeighbourUp(item)                       TLS connection of a link: Intro heard, keys exported;
                                            again whenever a proxy at either end started anew
    NeighbourDown(node)                     that connection is gone
    Received(node, Flood | Digest | Bucket | Want | Completion)
                                            a message over it (Intro and Alive stay in the driver)
    ProxySaid(fact), ProxyGone()            what the proxy's socket said; its end
    KernelLinks(nodes, held)                over whose links the kernel forwards, where it does
    KernelPace(nodes)                       which of these it finds good, so that hellos may be few
    AuthoritySaid(update)                   from Watch
    AuthorityState(up, reason)              the connection to the authority came or went
    RenewNow(ids)                           an operator asks
    Stopping()                              last event before a stop: tells the mesh so

    effect                                  what to do with it
    Send(node, message)                     write to the link's connection; drop it if that is full
    Order(message)                          write this Full or Delta to the proxy's socket
    RenewWanted(token, id)                  core.identity.renewal; get an SVID, answer by Done with
                                            an SvidItem, or Failed
    WaysChanged(ways)                       core.routing.forwarding; with `forwards`, for the kernel
    TableComplete()                         what an earlier life left of that table can go
    SvidExpired(id)                         core.identity.renewal; stop handing this SVID out
    HangUp(node, reason)                    close the link's connection and dial it no more
    SetChanged(set, sequence, body, ...)    records.sets; new bundle and revocations for one's own
    SetGone(set)                            TLS contexts; names and policy are handled in here
    PersistWanted()                         write `Agent.held()`
    KeepWanted()                            write `Agent.workloads()`
    WorkloadsChanged()                      tell the workloads: `Agent.entries()`, `Agent.svid()`
    Noticed(kind, text)                     a line for the events log

The proxy's side: after Ready it sends a Full of what it holds and the LinkState of each link, and
only then hears an Order.  A Ready with another incarnation means that all link keys are void.

Its tables answer questions at once: `view`, `paths`, `explain`, `held`, `workloads`,
`bundle_chain`.
"""
