/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * What user space and the kernel read of each other, and what goes over the wire. All structs are
 * packed and little-endian; edge/kernel/layout.py mirrors each of them once, and a test compares
 * both by the object's BTF. A change here needs a new X0_LAYOUT.
 *
 * Every field has one writer: user space (u), the path of received hellos (r), the timer (t), the
 * clock (c), or anybody by an atomic addition (a).
 */
#pragma once
#include "kernel.h"

enum {
	X0_LAYOUT = 2,      /* of all structs below; pinned maps of another one are not adopted */
	X0_LINKS = 256,     /* links of a node */
	X0_FAN = 32,        /* hellos sent at one turn of the clock */
	X0_PORT = 8464,     /* UDP, source and target */
	X0_VERSION = 1,
	X0_GOOD = 10,       /* answers in a row after which a dead link is worth telling about */
	X0_SEGMENTS = 16,   /* of a source route; a power of two */
	X0_OPTIONS = 3,     /* headers with options that are looked behind for a routing header */
	X0_TAGS = 2,        /* priority tags that are looked behind */
	X0_DIVERTED = 0x5830, /* tc_index of a packet that was diverted once already */
	X0_ARRIVED = 0x5831,  /* of one that was counted and may come in once more */
};

enum x0_kind { X0_REQUEST = 1, X0_ANSWER = 2 };
enum x0_hello_flag { X0_AGENT_ALIVE = 1 };

/* A hello: payload of a UDP datagram over link-local IPv6, hop limit 255 (RFC 5082). */
struct x0_hello {
	__u8 version, kind, slot, flags;
	__u32 session;      /* the link's number at the receiver */
	__u64 incarnation;  /* of the sender: grows with each start */
	__u64 sequence;     /* per sender, kind and incarnation */
	__u64 sent_ns;      /* of the request, by its sender's clock; an answer returns it */
	__u32 sent;         /* data packets that the sender has put on this link */
	__u32 told;         /* `sent` of the last hello that it heard, and ... */
	__u32 received;     /* ... what it had received when it heard that: the difference is loss */
	__u32 heard;        /* requests it has accepted */
	__u64 tag;          /* SipHash-2-4 of all the above */
} PACKED(8);

enum x0_link_flag {
	X0_ACTIVE = 1,
	X0_DECLARED_DEAD = 2, /* by user space: data is diverted whatever the hellos say */
	X0_MEASURE_TCP = 4,   /* count retransmissions */
};

/* What user space says about a link. */
struct x0_link {
	__u64 receive_key[2][2]; /* by slot; zero = slot not in use */
	__u64 send_key[2][2];
	__u64 incarnation;
	__u64 dead_ns;      /* no answer for so long = dead */
	__u64 suspect_ns;   /* for so long = suspect: data goes both ways */
	__u64 late_ns;      /* a timer that comes later than this gives no verdict */
	__u32 ifindex, peer_session;
	__u32 forgiven;     /* verdicts that user space has taken back: dead while != downs */
	__u32 flags, send_slot, mtu;
	__u8 local_mac[6], peer_mac[6];
	__u32 unanswered;   /* no verdict before so many requests had no answer */
	struct address local, peer;
} PACKED(8);

/* What the kernel knows about a link. */
struct x0_state {
	struct bpf_timer timer;
	__u64 answered_ns;  /* r: when the last answer came */
	__u64 answered_at;  /* r: our requests at that time */
	__u64 rtt_ns;       /* r: smoothed by 1/16 */
	__u64 rtt_last_ns;  /* r */
	__u64 good;         /* r: answers without a gap */
	__u64 answers;      /* r: accepted */
	__u64 requests;     /* r: accepted */
	__u64 top[2], window[2]; /* r: replay window per kind (RFC 4303 section 3.4.3) */
	__u64 gaps;         /* r: hellos that the peer has sent and that have not come */
	__u64 peer_incarnation; /* r */
	__u64 answered;     /* r: answers sent = their sequence */
	__u32 peer_sent, peer_told, peer_received, peer_heard; /* r: as the last hello told */
	__u32 peer_flags, received_then; /* r: our own count at that moment */
	__u64 asked_then;   /* r: likewise */
	__u64 asked;        /* c: requests sent = their sequence */
	__u64 wake_ns;      /* t: when it means to run next */
	__u64 floor_ns;     /* t: silence before this is nobody's fault */
	__u64 suspected_ns; /* t: suspect while answered_ns is older */
	__u64 suspicions, late; /* t */
	__u32 downs, told;  /* t: verdicts; suspicion that was told */
	__u64 sent, received; /* a: data packets */
	__u64 diverted, duplicated, lost; /* a: by the egress; lost = no live alternate */
	__u64 repaired;     /* a: of those diverted or duplicated, along a source route */
	__u64 tcp, retransmitted; /* a: segments with data */
	__u64 refused;      /* a: hellos naming this link that were not accepted */
} PACKED(8);

/* Whose packets those are: a neighbour by interface and hardware address. */
struct x0_port {
	__u32 ifindex;
	__u8 mac[6];
	__u16 reserved;
} PACKED(4);

/* Where data for a destination goes while its link is dead. */
struct x0_route {
	__u32 prefix;       /* bits: 32 for the link, then those of the address */
	__u32 link;
	struct address target;
} PACKED(8);

struct x0_alternate {
	__u32 link;
	__u32 segments;     /* how many the packet is led along; 0: the neighbour knows how to go on */
	struct address source; /* of the header that leads it: this node */
	struct address segment[X0_SEGMENTS]; /* as in that header: the last one first */
} PACKED(8);

/* What user space says to all programs. */
struct x0_settings {
	__u64 renewed_ns;   /* the agent's lease: when it was stamped (CLOCK_MONOTONIC) */
	__u64 agent_ns;     /* a lease older than this: hellos say that the agent is gone */
	__u64 stand_down_ns; /* older than this: no hellos, no answers, no diversion */
	__u64 period_ns;    /* one turn of the clock */
	__u32 layout, clock_ifindex;
	__u32 fan;          /* hellos per round */
	__u32 generation;   /* of the clock's frame; another's is dropped */
	__u32 build, reserved; /* of the object that is loaded */
} PACKED(8);

struct x0_beat {
	__u32 link, one;    /* 1; programs of before send in every so many rounds */
} PACKED(8);

struct x0_turns {
	__u64 reserved, turns; /* what has no meaning is written by programs of before */
	__u32 cursor, unused;
} PACKED(8);

enum x0_event_kind {
	X0_EVENT_SUSPECTED = 1,
	X0_EVENT_CLEARED = 2,  /* a suspicion was wrong */
	X0_EVENT_DOWN = 3,
	X0_EVENT_GOOD = 4,     /* X0_GOOD answers in a row, on a link that is down */
};

struct x0_event {
	__u32 link;
	enum x0_event_kind kind;
	__u64 at_ns, silent_ns;
} PACKED(8);

/* Why a packet was dropped or noted; index of `counters`. */
enum x0_reason {
	X0_HELLO_ANSWERED,
	X0_HELLO_ACCEPTED,
	X0_HELLO_TRUNCATED,
	X0_HELLO_MISADDRESSED,
	X0_HELLO_FORGED,
	X0_HELLO_REPLAYED,
	X0_HELLO_STOOD_DOWN,
	X0_FILTER_PASSED,
	X0_FILTER_SOURCE,
	X0_FILTER_STRANGER,
	X0_FILTER_NO_MEMBER,
	X0_FILTER_DENIED,
	X0_FILTER_RATE,
	X0_FILTER_FOREIGN,
	X0_DIVERT_NO_ALTERNATE,
	X0_DIVERT_TOO_BIG,
	X0_DIVERT_REFUSED, /* the kernel puts no header around it */
	X0_CLOCK_STRAY,
	X0_EVENT_LOST,
	X0_REASONS,
};

enum x0_filter_flag { X0_FILTER_ON = 1, X0_FILTER_SOURCES = 2, X0_FILTER_NEIGHBOURS = 4 };

struct x0_filter {
	__u64 prefix, mask; /* the mesh's addresses: upper 64 bits, network order */
	__u32 flags, reserved;
} PACKED(8);

struct x0_prefix {
	__u32 prefix;       /* bits */
	struct address source;
} PACKED(4);

/* One member of the mesh; the rate is a GCRA (ITU-T I.371): one number, no lock. */
struct x0_member {
	__u64 cost_ns;      /* 1e9 / packets per second; 0 = no limit */
	__u64 burst_ns;
	__u64 due_ns;       /* theoretical arrival time of the next packet */
	__u64 dropped;
	__u32 denied, reserved;
} PACKED(8);

struct x0_flow {
	struct address source, target;
	__u16 source_port, target_port;
} PACKED(4);
