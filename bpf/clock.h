/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The clock: one frame circles in a veth pair, held back by the qdisc of one end. At every turn a
 * clone of it leaves on each link as a stamped request; no process is in this loop.
 */
#pragma once
#include "hello.h"

/* A frame on the stack whose fields lie at their natural addresses. */
struct outgoing {
	__u16 offset;
	struct hello_frame frame;
} __attribute__((packed, aligned(8)));

/* One request on one link. A function of its own, so that the verifier walks it once. */
NOINLINE int ask(struct __sk_buff *skb, __u32 number)
{
	struct outgoing out = {};
	struct ethernet *ethernet = &out.frame.ethernet;
	struct ipv6 *ipv6 = &out.frame.ipv6;
	struct udp *udp = &out.frame.udp;
	struct x0_hello *hello = &out.frame.hello;
	struct x0_settings *set = settings();
	struct x0_link *link = map_lookup(&x0_links, &number);
	struct x0_state *state = map_lookup(&x0_states, &number);
	__u64 now = ktime();

	if (!link || !state || !set || !(link->flags & X0_ACTIVE))
		return 0;
	__builtin_memcpy(ethernet->target, link->peer_mac, 6);
	__builtin_memcpy(ethernet->source, link->local_mac, 6);
	ethernet->type = HTONS(TYPE_IPV6);
	ipv6->version_class_flow = 0x6c; /* 6c 00 00 00: version 6, class CS6 (RFC 2474) */
	ipv6->payload = HTONS(sizeof(*udp) + sizeof(*hello));
	ipv6->next = NEXT_UDP;
	ipv6->hops = 255;
	ipv6->source = link->local;
	ipv6->target = link->peer;
	udp->source = udp->target = HTONS(X0_PORT);
	udp->length = HTONS(sizeof(*udp) + sizeof(*hello));
	hello->kind = X0_REQUEST;
	tell_counts(hello, link, state, set, now);
	hello->sent_ns = now;
	hello->sequence = ++state->asked;
	put_tag(hello, link->send_key[link->send_slot & 1]);
	if (skb_store(skb, 0, &out.frame, sizeof(out.frame), 0))
		return 0;
	return clone_redirect(skb, link->ifindex, 0);
}

INLINE int turn(struct __sk_buff *skb)
{
	struct x0_settings *set = settings();
	struct x0_turns *turns;
	struct x0_beat *beat;
	__u64 now = ktime();
	__u32 zero = 0, at;

	turns = map_lookup(&x0_turns, &zero);
	if (!set || !turns)
		return TC_SHOT;
	if (skb->mark != set->generation || skb->len != sizeof(struct hello_frame) ||
	    !leased(set, now, set->stand_down_ns)) {
		count(X0_CLOCK_STRAY);
		return TC_SHOT;
	}
	turns->turns++;
	skb->mark = 0;
	at = turns->cursor;
	for (__u32 i = 0; i < X0_FAN; i++) {
		if (i >= set->fan)
			break;
		if (at >= set->fan)
			at = 0;
		beat = map_lookup(&x0_fan, &at);
		if (beat)
			ask(skb, beat->link);
		at++;
	}
	turns->cursor = at;
	skb->mark = set->generation;
	return redirect(set->clock_ifindex, 0);
}

/* Puts the frame on its way: run once, by PROG_TEST_RUN, so that no socket owns it. */
INLINE int start(struct __sk_buff *skb)
{
	struct x0_settings *set = settings();

	if (!set)
		return TC_SHOT;
	skb->mark = set->generation;
	clone_redirect(skb, set->clock_ifindex, 0);
	return TC_OK;
}
