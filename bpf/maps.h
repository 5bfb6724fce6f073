/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/* The maps of all programs. Bounds are those of `max_entries`. */
#pragma once
#include "layout.h"

#define ARRAY(name, entries, content)                \
	struct {                                     \
		__uint(type, MAP_ARRAY);             \
		__uint(max_entries, entries);        \
		__type(key, __u32);                  \
		__type(value, content);              \
	} name SEC(".maps")

ARRAY(x0_links, X0_LINKS, struct x0_link);
ARRAY(x0_states, X0_LINKS, struct x0_state);
ARRAY(x0_settings, 1, struct x0_settings);
ARRAY(x0_fan, X0_LINKS, struct x0_beat);
ARRAY(x0_turns, 1, struct x0_turns);
ARRAY(x0_filters, 1, struct x0_filter);

struct {
	__uint(type, MAP_PERCPU_ARRAY);
	__uint(max_entries, X0_REASONS);
	__type(key, __u32);
	__type(value, __u64);
} x0_counters SEC(".maps");

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, X0_LINKS);
	__type(key, struct x0_port);
	__type(value, __u32);
} x0_ports SEC(".maps");

struct {
	__uint(type, MAP_LPM_TRIE);
	__uint(max_entries, 65536);
	__uint(map_flags, MAP_NO_PREALLOC);
	__type(key, struct x0_route);
	__type(value, struct x0_alternate);
} x0_alternates SEC(".maps");

struct {
	__uint(type, MAP_RINGBUF);
	__uint(max_entries, 65536);
} x0_events SEC(".maps");

struct {
	__uint(type, MAP_HASH);
	__uint(max_entries, 65536);
	__uint(map_flags, MAP_NO_PREALLOC);
	__type(key, struct address);
	__type(value, struct x0_member);
} x0_members SEC(".maps");

struct {
	__uint(type, MAP_LPM_TRIE);
	__uint(max_entries, 16384);
	__uint(map_flags, MAP_NO_PREALLOC);
	__type(key, struct x0_prefix);
	__type(value, __u32); /* 1 = denied */
} x0_sources SEC(".maps");

struct {
	__uint(type, MAP_LRU_HASH);
	__uint(max_entries, 16384);
	__type(key, struct x0_flow);
	__type(value, __u32); /* the sequence number after the highest that was sent */
} x0_flows SEC(".maps");

/* Of a packet that is none of our business: it passes. */
enum { UNCOUNTED = X0_REASONS };

/* In line: a call takes as long as all that a hello is asked before its tag. */
INLINE void count(enum x0_reason reason)
{
	__u32 index = reason;
	__u64 *counter = map_lookup(&x0_counters, &index);

	if (counter)
		(*counter)++;
}

INLINE struct x0_settings *settings(void)
{
	__u32 zero = 0;

	return map_lookup(&x0_settings, &zero);
}

/* The agent has renewed its lease within `limit` nanoseconds. */
INLINE int leased(const struct x0_settings *set, __u64 now, __u64 limit)
{
	return (__s64)(now - set->renewed_ns) < (__s64)limit;
}

INLINE __u32 *link_at(__u32 ifindex, const __u8 *mac)
{
	struct x0_port port = { .ifindex = ifindex };

	__builtin_memcpy(port.mac, mac, 6);
	return map_lookup(&x0_ports, &port);
}

static NOINLINE void emit(const struct x0_event *event)
{
	if (ringbuf_output(&x0_events, event, sizeof(*event), 0))
		count(X0_EVENT_LOST);
}

INLINE void tell(__u32 link, enum x0_event_kind kind, __u64 now, __u64 silent)
{
	struct x0_event event = { .link = link, .kind = kind, .at_ns = now, .silent_ns = silent };

	emit(&event);
}

INLINE int is_dead(const struct x0_link *link, const struct x0_state *state)
{
	return state->downs != link->forgiven || link->flags & X0_DECLARED_DEAD;
}

INLINE int is_suspect(const struct x0_state *state)
{
	return state->suspected_ns > state->answered_ns;
}
