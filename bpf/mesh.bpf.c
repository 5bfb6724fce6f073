/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * The kernel's half of a node: one object, seven programs.
 *
 *   x0_ingress  XDP, each underlay interface: hellos, then the membership filter
 *   x0_arrive   TC ingress, behind it: counts data per link
 *   x0_generic  TC ingress, in place of both where the driver has no XDP. Generic XDP would leave
 *               out what an interface of the same host has redirected, and copy joined packets
 *   x0_leave    TC egress, likewise: counts, diverts, duplicates
 *   x0_turn     TC ingress of the clock's veth: sends the requests
 *   x0_start    PROG_TEST_RUN: puts the clock's frame on its way
 *   x0_arm      PROG_TEST_RUN: starts the timer of a link (Linux 5.15; the others run on 5.10)
 */
#include "clock.h"
#include "divert.h"
#include "filter.h"

char _license[] SEC("license") = "Dual MIT/GPL";

struct ipv4 {
	__u8 head[12];
	__u32 source, target;
} PACKED(2);

INLINE int is_tag(__u16 type)
{
	return type == HTONS(TYPE_VLAN) || type == HTONS(TYPE_SERVICE_VLAN);
}

/*
 * What a frame that came in is. A tag without a VLAN is nothing to the kernel, and there may be some:
 * what is behind them is looked at alike (hellos have none). Frames of a VLAN are another interface's.
 */
INLINE enum x0_reason classify(__u32 ifindex, void *data, void *end)
{
	struct hello_frame *frame = data;
	struct ipv6 *ipv6 = &frame->ipv6;
	struct tag *tag = (void *)ipv6;
	__u16 type;

	if ((void *)(&frame->ethernet + 1) > end)
		return UNCOUNTED;
	type = frame->ethernet.type;
	if (type == HTONS(TYPE_IPV6) && (void *)(&frame->udp + 1) <= end &&
	    ipv6->next == NEXT_UDP && frame->udp.target == HTONS(X0_PORT) &&
	    frame->udp.source == HTONS(X0_PORT) && is_link_local(&ipv6->target))
		return hear(ifindex, frame, end);
#pragma unroll
	for (int tags = 0; tags < X0_TAGS; tags++, tag++) {
		if (!is_tag(type))
			break;
		if ((void *)(tag + 1) > end || tag->control & HTONS(VLAN_NUMBER))
			return UNCOUNTED;
		type = tag->type;
	}
	if (is_tag(type))
		return in_force() ? X0_FILTER_FOREIGN : UNCOUNTED;
	if (type == HTONS(TYPE_IPV4)) {
		struct ipv4 *ipv4 = (void *)tag;

		return (void *)(ipv4 + 1) <= end ? admit_ipv4(ipv4->source) : UNCOUNTED;
	}
	ipv6 = (void *)tag;
	if (type != HTONS(TYPE_IPV6) || (void *)(ipv6 + 1) > end)
		return UNCOUNTED;
	return admit(ifindex, &frame->ethernet, ipv6, end);
}

/* What to do with it: an XDP verdict. What is counted at all is counted here. */
INLINE int enter(__u32 ifindex, void *data, void *end)
{
	enum x0_reason reason = classify(ifindex, data, end);

	if (reason == UNCOUNTED)
		return XDP_PASS;
	count(reason);
	switch (reason) {
	case X0_HELLO_ANSWERED:
		return XDP_TX;
	case X0_FILTER_PASSED:
		return XDP_PASS;
	default:
		return XDP_DROP;
	}
}

SEC("xdp")
int x0_ingress(struct xdp_md *ctx)
{
	return enter(ctx->ingress_ifindex, (void *)(long)ctx->data, (void *)(long)ctx->data_end);
}

SEC("tc")
int x0_arrive(struct __sk_buff *skb)
{
	return arrive(skb);
}

SEC("tc")
int x0_generic(struct __sk_buff *skb)
{
	__u32 wanted = sizeof(struct hello_frame);

	if (skb->len < wanted)
		wanted = skb->len;
	if ((void *)(long)skb->data + wanted > (void *)(long)skb->data_end && skb_pull(skb, wanted))
		return TC_SHOT; /* it may be anything: there was no memory to look at it */
	switch (enter(skb->ifindex, (void *)(long)skb->data, (void *)(long)skb->data_end)) {
	case XDP_DROP:
		return TC_SHOT;
	case XDP_TX:
		return redirect(skb->ifindex, 0);
	}
	return arrive(skb);
}

SEC("tc")
int x0_leave(struct __sk_buff *skb)
{
	return leave(skb);
}

SEC("tc")
int x0_turn(struct __sk_buff *skb)
{
	return turn(skb);
}

SEC("tc")
int x0_start(struct __sk_buff *skb)
{
	return start(skb);
}

struct x0_armed {
	__u32 link;
} PACKED(4);

SEC("syscall")
int x0_arm(struct x0_armed *armed)
{
	__u32 number = armed->link;
	struct x0_link *link = map_lookup(&x0_links, &number);
	struct x0_state *state = map_lookup(&x0_states, &number);
	__u64 now = ktime();

	if (!link || !state)
		return 1;
	timer_init(&state->timer, &x0_states, 1 /* CLOCK_MONOTONIC */);
	if (timer_set_callback(&state->timer, judge))
		return 2;
	state->floor_ns = now;
	state->wake_ns = now + link->suspect_ns;
	return timer_start(&state->timer, link->suspect_ns, 0) ? 3 : 0;
}
