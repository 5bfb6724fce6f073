"""Sessions: all that one workload says to one workload on one node, above any circuit.

    frames    what is said inside TLS: numbered frames, and JOIN, ACK, PING ...
    ring      plaintext that is not yet acknowledged
    stream    one application connection: credit, both ends of its life
    pipe      Pipe: a session's bytes, outlives circuits
    circuit   Circuit: parser and control frames, dies with its circuit
    facts     events, effects and limits of the two machines
    control   Client: dials, judges, moves (one machine per session)
    answer    Server: accepts and answers (one machine per proxy)

       application          Pipe                     Circuit            TLS, socket
       room/put/write --> ring: chunks --pending()--> [control|ACK+chunk] --> write
       on_data        <-- streams      <------------- feed(view)        <-- read
                            ^  attach, offsets
                          Client | Server            JOIN, PING, ACK as SendFrame; DialCircuit;
                            (machines)               CloseCircuit; Joined; SessionEnded

How a driver runs it (the proxy's loop and the simulator do the same):

1. An effect `DialCircuit(token, ...)`: set a circuit up; when its TLS is done and its peer judged,
   make `Circuit(token, heard)` and answer `Done(token, Up(...))`, else `Failed(token, reason)`.
2. `heard(circuit, kind, value, body)`: give `Heard(...)` to the machine at once and carry its
   effects out before returning: frames behind a JOIN on the same circuit depend on it.
3. After each batch: `pipe.flush()`; then for the active circuit, while its send buffer is empty:
   write `circuit.pending()` until it is None.  If `not client.watching`: `Wrote`.
4. After each `feed`: if `circuit.owes()` and not `owing`: `Owing`.  `ProtocolError` from feed:
   close the circuit and give `CircuitLost(circuit, "protocol")`.  `SessionBroken`: `Broken`.
5. A circuit that fails on its own: `CircuitLost`, never from within `pending` or `feed`.
6. `Tick` at `deadline`.
"""
