/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Data leaving on a link: counted; of a dead link by its destination's alternate, of a suspect link
 * by both. Only a live link is an alternate (user space says which per destination), and what was
 * diverted once is never diverted again, nor is what came along a source route.
 *
 *   loop-free (RFC 5286)   other hardware addresses, nothing else
 *   source route           within the headers that the kernel's route would have put around it
 *                          (RFC 8754, encapsulation; linux/net/ipv6/seg6_iptunnel.c)
 *
 * These headers take 48 bytes and 16 for each segment. Segments of TCP that are still one are cut
 * smaller by that; whatever else would not fit the link's MTU stays where it is, and is counted.
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

struct outer {
	struct ipv6 ipv6;
	struct routing routing;
} PACKED(8);

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

INLINE struct x0_alternate *alternate(const struct ipv6 *ipv6, __u32 failed)
{
	struct x0_route route = { .prefix = 32 + 128, .link = failed, .target = ipv6->target };

	return ipv6->next == NEXT_ROUTING ? NULL : map_lookup(&x0_alternates, &route);
}

/* Bytes before the payload: of TCP and UDP, which alone are cut into pieces. */
INLINE __u32 heads(const struct segment *segment, const void *end)
{
	if (segment->head.ipv6.next != NEXT_TCP)
		return sizeof(struct data_frame) + sizeof(struct udp);
	if ((const void *)(segment + 1) > end)
		return sizeof(struct data_frame) + 60;
	return sizeof(struct data_frame) + (segment->tcp.offset >> 4) * 4;
}

/* Flags of `adjust_room` with which it fits a link within headers of so many bytes; 0: it won't. */
INLINE __u64 fit(const struct __sk_buff *skb, const struct x0_link *link, __u32 room,
		 __u32 heads, int is_tcp)
{
	__u32 most = link->mtu + sizeof(struct ethernet), piece = skb->gso_size;
	__u32 size = piece ? heads + piece : skb->len;

	if (room && skb->len + room > 0xffff)
		return 0;
	if (size + room <= most)
		return WITHIN_IPV6 | SAME_PIECES;
	return is_tcp && size <= most && piece > 2 * room ? WITHIN_IPV6 : 0;
}

/* Puts the headers of a source route around a packet; what it is takes them over, as tunnels do. */
INLINE long lead(struct __sk_buff *skb, const struct x0_alternate *way, struct ipv6 *inner,
		 __u32 room, __u64 flags)
{
	__u32 first = (way->segments - 1) & (X0_SEGMENTS - 1);
	struct outer outer = {
		.ipv6.version_class_flow = inner->version_class_flow & 0xf0ff,
		.ipv6.payload = HTONS(skb->len + room - sizeof(struct data_frame)),
		.ipv6.next = NEXT_ROUTING,
		.ipv6.hops = inner->hops,
		.ipv6.source = way->source,
		.ipv6.target = way->segment[first],
		.routing.next = NEXT_IPV6,
		.routing.length = 2 * (first + 1),
		.routing.type = SEGMENT_ROUTING,
		.routing.left = first,
		.routing.last = first,
	};
	long failed = adjust_room(skb, room, BEHIND_ETHERNET, flags);

	if (failed)
		return failed;
	skb_store(skb, sizeof(struct ethernet), &outer, sizeof(outer), 0);
	return skb_store(skb, sizeof(struct ethernet) + sizeof(outer), way->segment,
			 first * 16 + 16, 0);
}

/* Sends a packet of a link that is dead or suspect by its alternate, if it can. */
INLINE int divert(struct __sk_buff *skb, struct ipv6 ipv6, __u32 heads, __u32 number,
		  struct x0_state *state, int dead)
{
	struct x0_alternate *way = alternate(&ipv6, number);
	struct x0_link *other = way ? live(way->link, number) : NULL;
	__u32 pieces = segments(skb), room = 0;
	enum x0_reason reason = X0_DIVERT_NO_ALTERNATE;
	__u64 flags;

	if (!other)
		goto stays;
	if (way->segments)
		room = sizeof(struct outer) + 16 * way->segments;
	flags = fit(skb, other, room, heads, ipv6.next == NEXT_TCP);
	reason = X0_DIVERT_TOO_BIG;
	if (!flags)
		goto stays;
	skb->tc_index = X0_DIVERTED;
	if (!dead)
		clone_redirect(skb, skb->ifindex, 0);
	if (room && lead(skb, way, &ipv6, room, flags)) {
		if (!dead)
			return TC_SHOT;
		reason = X0_DIVERT_REFUSED;
		goto stays;
	}
	skb_store(skb, 0, other->peer_mac, 6, 0);
	skb_store(skb, 6, other->local_mac, 6, 0);
	if (room)
		__sync_fetch_and_add(&state->repaired, pieces);
	__sync_fetch_and_add(dead ? &state->diverted : &state->duplicated, pieces);
	return redirect(other->ifindex, 0);
stays:
	count(reason);
	skb->tc_index = 0;
	__sync_fetch_and_add(&state->sent, pieces);
	if (dead)
		__sync_fetch_and_add(&state->lost, pieces);
	return TC_OK;
}

INLINE int leave(struct __sk_buff *skb)
{
	struct data_frame *frame;
	struct x0_settings *set;
	struct x0_state *state;
	struct x0_link *link;
	__u32 *at, number, dead, marked = skb->tc_index == X0_DIVERTED;
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
	if (link->flags & X0_MEASURE_TCP && !marked)
		measure(state, (void *)frame, end);
	dead = is_dead(link, state);
	if (!marked && (dead || is_suspect(state)) && leased(set, ktime(), set->stand_down_ns))
		return divert(skb, frame->ipv6, heads((void *)frame, end), number, state, dead);
	__sync_fetch_and_add(&state->sent, segments(skb));
	return TC_OK;
}

/*
 * Data that came on a link, counted after the driver has joined packets (GRO says how many). What
 * ends its source route here comes in once more for what is within, and shows the same headers.
 */
INLINE int arrive(struct __sk_buff *skb)
{
	struct data_frame *frame = (void *)(long)skb->data;
	void *end = (void *)(long)skb->data_end;
	struct x0_state *state;
	__u32 *at;

	if (skb->protocol != HTONS(TYPE_IPV6) || (void *)(frame + 1) > end ||
	    skb->tc_index == X0_ARRIVED || is_hello(frame, end))
		return TC_OK;
	at = link_at(skb->ifindex, frame->ethernet.source);
	if (!at)
		return TC_OK;
	state = map_lookup(&x0_states, at);
	if (state)
		__sync_fetch_and_add(&state->received, segments(skb));
	if (frame->ipv6.next == NEXT_ROUTING)
		skb->tc_classid = X0_ARRIVED; /* becomes its tc_index, which is zero otherwise */
	return TC_OK;
}
