/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Data leaving on a link: counted; of a dead link by its destination's alternate, of a suspect link
 * by both. Only a live link is an alternate (RFC 5286 picks them; user space says so per
 * destination), and what was diverted once is never diverted again.
 */
#pragma once
#include "maps.h"

struct data_frame {
	struct ethernet ethernet;
	struct ipv6 ipv6;
} PACKED(2);

struct segment {
	struct data_frame head;
	struct tcp tcp;
} PACKED(2);

INLINE __u32 segments(const struct __sk_buff *skb)
{
	return skb->gso_segs > 1 ? skb->gso_segs : 1;
}

INLINE int is_hello(const struct data_frame *frame, const void *end)
{
	const struct ipv6 *ipv6 = &frame->ipv6;
	const struct udp *udp = (const void *)(ipv6 + 1);

	return ipv6->next == NEXT_UDP && (const void *)(udp + 1) <= end &&
	       udp->target == HTONS(X0_PORT) && is_link_local(&ipv6->target);
}

/* A segment with data below the highest sequence number of its flow was sent before. */
INLINE void measure(struct x0_state *state, const struct segment *segment, const void *end)
{
	const struct ipv6 *ipv6 = &segment->head.ipv6;
	const struct tcp *tcp = &segment->tcp;
	struct x0_flow flow;
	__u32 header, payload, first, next, *known;

	if ((const void *)(segment + 1) > end || ipv6->next != NEXT_TCP)
		return;
	header = (tcp->offset >> 4) * 4;
	payload = NTOHS(ipv6->payload);
	if (payload <= header)
		return;
	payload -= header;
	flow.source = ipv6->source;
	flow.target = ipv6->target;
	flow.source_port = tcp->source;
	flow.target_port = tcp->target;
	first = NTOHL(tcp->sequence);
	next = first + payload;
	known = map_lookup(&x0_flows, &flow);
	__sync_fetch_and_add(&state->tcp, 1);
	if (!known)
		map_update(&x0_flows, &flow, &next, ANY);
	else if ((__s32)(next - *known) > 0)
		*known = next;
	else
		__sync_fetch_and_add(&state->retransmitted, 1);
}

INLINE struct x0_link *live(__u32 number, __u32 failed)
{
	struct x0_link *link = map_lookup(&x0_links, &number);
	struct x0_state *state = map_lookup(&x0_states, &number);

	if (!link || !state || number == failed || !(link->flags & X0_ACTIVE) ||
	    is_dead(link, state) || is_suspect(state))
		return NULL;
	return link;
}

INLINE struct x0_link *alternate(const struct data_frame *frame, __u32 failed)
{
	const struct ipv6 *ipv6 = &frame->ipv6;
	struct x0_route route = { .prefix = 32 + 128, .link = failed, .target = ipv6->target };
	struct x0_alternate *choice = map_lookup(&x0_alternates, &route);
	struct x0_link *link;

	if (!choice)
		return NULL;
	link = live(choice->link[0], failed);
	return link ? link : live(choice->link[1], failed);
}

INLINE int too_big(const struct __sk_buff *skb, const struct x0_link *link)
{
	__u32 size = skb->gso_size ? skb->gso_size + sizeof(struct segment) + 40 : skb->len;

	return size > link->mtu + sizeof(struct ethernet);
}

INLINE int leave(struct __sk_buff *skb)
{
	struct data_frame *frame;
	struct x0_settings *set;
	struct x0_state *state;
	struct x0_link *link, *other;
	__u32 *at, number, dead, pieces = segments(skb), marked = skb->tc_index;
	__u8 own[12];
	void *end;

	if (skb->protocol != HTONS(TYPE_IPV6))
		return TC_OK;
	frame = (void *)(long)skb->data;
	end = (void *)(long)skb->data_end;
	if ((void *)(frame + 1) > end) {
		skb_pull(skb, sizeof(*frame));
		frame = (void *)(long)skb->data;
		end = (void *)(long)skb->data_end;
		if ((void *)(frame + 1) > end)
			return TC_OK;
	}
	at = link_at(skb->ifindex, frame->ethernet.target);
	if (!at || is_hello(frame, end))
		return TC_OK;
	number = *at;
	link = map_lookup(&x0_links, &number);
	state = map_lookup(&x0_states, &number);
	set = settings();
	if (!link || !state || !set)
		return TC_OK;
	skb->tc_index = 0;
	if (link->flags & X0_MEASURE_TCP)
		measure(state, (void *)frame, end);
	dead = is_dead(link, state);
	if ((!dead && !is_suspect(state)) || marked == X0_DIVERTED ||
	    !leased(set, ktime(), set->stand_down_ns)) {
		__sync_fetch_and_add(&state->sent, pieces);
		return TC_OK;
	}
	other = alternate(frame, number);
	if (!other || too_big(skb, other)) {
		count(other ? X0_DIVERT_TOO_BIG : X0_DIVERT_NO_ALTERNATE);
		__sync_fetch_and_add(&state->sent, pieces);
		if (dead)
			__sync_fetch_and_add(&state->lost, pieces);
		return TC_OK;
	}
	__builtin_memcpy(own, &frame->ethernet, 12);
	skb->tc_index = X0_DIVERTED;
	skb_store(skb, 0, other->peer_mac, 6, 0);
	skb_store(skb, 6, other->local_mac, 6, 0);
	if (dead) {
		__sync_fetch_and_add(&state->diverted, pieces);
		return redirect(other->ifindex, 0);
	}
	clone_redirect(skb, other->ifindex, 0);
	skb_store(skb, 0, own, 12, 0);
	skb->tc_index = 0;
	__sync_fetch_and_add(&state->duplicated, pieces);
	__sync_fetch_and_add(&state->sent, pieces);
	return TC_OK;
}

/* Data that came on a link, counted after the driver has joined packets (GRO says how many). */
INLINE int arrive(struct __sk_buff *skb)
{
	struct data_frame *frame = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct x0_state *state;
	__u32 *at;

	if (skb->protocol != HTONS(TYPE_IPV6) || (void *)(frame + 1) > end || is_hello(frame, end))
		return TC_OK;
	at = link_at(skb->ifindex, frame->ethernet.source);
	if (!at)
		return TC_OK;
	state = map_lookup(&x0_states, at);
	if (state)
		__sync_fetch_and_add(&state->received, segments(skb));
	skb->tc_index = 0;
	return TC_OK;
}
