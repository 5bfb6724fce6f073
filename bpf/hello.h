/* SPDX-License-Identifier: MIT OR GPL-2.0-only */
/*
 * Hellos: received, judged and answered in the driver; the verdict by a timer.
 *
 * Source: RFC 5880 (liveness, here by request and answer, so that both directions are proved),
 * RFC 5082 (hop limit 255), RFC 4303 section 3.4.3 (replay window).
 *
 *     ALIVE --suspect_ns without an answer--> SUSPECT --dead_ns--> DEAD
 *       ^------------an answer--------------------'                 |
 *       ^------------user space forgives it-------------------------'
 *
 * The kernel only declares dead; user space revives. No verdict where the fault may be our own: the
 * timer late, or too little asked since the last answer, as when our clock stands.
 */
#pragma once
#include "maps.h"
#include "siphash.h"

struct hello_frame {
	struct ethernet ethernet;
	struct ipv6 ipv6;
	struct udp udp;
	struct x0_hello hello;
} PACKED(2);

enum { TAGGED = (sizeof(struct x0_hello) - sizeof(__u64)) / sizeof(__u64), WINDOW = 64 };

INLINE __u64 tag_of(const struct x0_hello *hello, const __u64 key[2])
{
	return siphash(key, (const __u64 *)hello, TAGGED);
}

/* Of what is sent: a function of its own, for the size of the programs. */
static NOINLINE void put_tag(struct x0_hello *hello, const __u64 key[2])
{
	hello->tag = tag_of(hello, key);
}

INLINE void tell_counts(struct x0_hello *hello, const struct x0_link *link,
			const struct x0_state *state, const struct x0_settings *set, __u64 now)
{
	hello->version = X0_VERSION;
	hello->slot = link->send_slot & 1;
	hello->flags = leased(set, now, set->agent_ns) ? X0_AGENT_ALIVE : 0;
	hello->session = link->peer_session;
	hello->incarnation = link->incarnation;
	hello->sent = state->sent;
	hello->told = state->peer_sent;
	hello->received = state->received_then;
	hello->heard = state->requests;
}

/*
 * Whether this number of this incarnation was heard before. `kind` is 0 or 1. Asked before the tag
 * is computed, so that a flood of old hellos is cheap (RFC 4303 section 3.4.3), noted after.
 */
INLINE int heard_before(const struct x0_state *state, __u32 kind, const struct x0_hello *hello)
{
	__u64 behind = state->top[kind] - hello->sequence;

	if (hello->incarnation != state->peer_incarnation)
		return hello->incarnation < state->peer_incarnation;
	if (hello->sequence > state->top[kind])
		return 0;
	return behind >= WINDOW || state->window[kind] >> behind & 1;
}

INLINE void note(struct x0_state *state, __u32 kind, __u64 sequence)
{
	__u64 ahead = sequence - state->top[kind], behind = state->top[kind] - sequence;

	if (sequence > state->top[kind]) {
		if (state->top[kind])
			state->gaps += ahead - 1;
		state->window[kind] = ahead < WINDOW ? state->window[kind] << ahead | 1 : 1;
		state->top[kind] = sequence;
		return;
	}
	state->window[kind] |= 1ULL << (behind & (WINDOW - 1));
	if (state->gaps) /* else it was sent before the first that came */
		state->gaps--;
}

INLINE void note_answer(__u32 number, struct x0_link *link, struct x0_state *state,
			const struct x0_hello *hello, __u64 now)
{
	__s64 rtt = now - hello->sent_ns;

	state->good = now - state->answered_ns > link->dead_ns ? 1 : state->good + 1;
	state->answers++;
	state->answered_at = state->asked;
	state->answered_ns = now;
	if (rtt > 0) {
		state->rtt_last_ns = rtt;
		state->rtt_ns = state->rtt_ns ? state->rtt_ns - (state->rtt_ns >> 4) + (rtt >> 4) : rtt;
	}
	if (state->good == X0_GOOD && is_dead(link, state))
		tell(number, X0_EVENT_GOOD, now, 0);
}

INLINE enum x0_reason refuse(struct x0_state *state, enum x0_reason reason)
{
	__sync_fetch_and_add(&state->refused, 1);
	return reason;
}

/* One hello; `frame` is at least up to its UDP header within the packet. */
INLINE enum x0_reason hear(__u32 ifindex, struct hello_frame *frame, void *end)
{
	struct x0_hello *hello = &frame->hello;
	struct ipv6 *ipv6 = &frame->ipv6;
	struct x0_settings *set;
	struct x0_state *state;
	struct x0_link *link;
	struct address address;
	__u32 number, kind, slot;
	__u64 now;
	__u8 mac[6];

	if ((void *)(frame + 1) > end ||
	    frame->udp.length != HTONS(sizeof(struct udp) + sizeof(*hello)) ||
	    hello->version != X0_VERSION || hello->kind - 1U > 1)
		return X0_HELLO_TRUNCATED;
	number = hello->session;
	link = map_lookup(&x0_links, &number);
	state = map_lookup(&x0_states, &number);
	if (!link || !state || !(link->flags & X0_ACTIVE))
		return X0_HELLO_MISADDRESSED;
	if (link->ifindex != ifindex || ipv6->hops != 255 ||
	    ipv6->source.high != link->peer.high || ipv6->source.low != link->peer.low ||
	    ipv6->target.high != link->local.high || ipv6->target.low != link->local.low)
		return refuse(state, X0_HELLO_MISADDRESSED);
	kind = hello->kind == X0_ANSWER;
	if (heard_before(state, kind, hello))
		return refuse(state, X0_HELLO_REPLAYED);
	slot = hello->slot & 1;
	if (!(link->receive_key[slot][0] | link->receive_key[slot][1]) || hello->slot > 1 ||
	    tag_of(hello, link->receive_key[slot]) != hello->tag)
		return refuse(state, X0_HELLO_FORGED);
	now = ktime();
	set = settings();
	if (!set || !leased(set, now, set->stand_down_ns))
		return X0_HELLO_STOOD_DOWN;
	if (hello->incarnation > state->peer_incarnation) {
		state->peer_incarnation = hello->incarnation;
		state->top[0] = state->top[1] = 0;
		state->window[0] = state->window[1] = 0;
	}
	note(state, kind, hello->sequence);

	state->peer_sent = hello->sent;
	state->peer_told = hello->told;
	state->peer_received = hello->received;
	state->peer_heard = hello->heard;
	state->peer_flags = hello->flags;
	state->received_then = state->received;
	state->asked_then = state->asked;
	if (hello->kind == X0_ANSWER) {
		note_answer(number, link, state, hello, now);
		return X0_HELLO_ACCEPTED;
	}
	state->requests++;
	__builtin_memcpy(mac, frame->ethernet.target, 6);
	__builtin_memcpy(frame->ethernet.target, frame->ethernet.source, 6);
	__builtin_memcpy(frame->ethernet.source, mac, 6);
	address = ipv6->source;
	ipv6->source = ipv6->target;
	ipv6->target = address;
	frame->udp.checksum = 0; /* RFC 6936: the tag covers what it would */
	hello->kind = X0_ANSWER;
	tell_counts(hello, link, state, set, now);
	hello->sequence = ++state->answered;
	put_tag(hello, link->send_key[link->send_slot & 1]);
	return X0_HELLO_ANSWERED;
}

/* The timer of one link: suspects, declares dead, says when to look again. */
static int judge(void *map, __u32 *key, struct x0_state *state)
{
	struct x0_link *link = map_lookup(&x0_links, key);
	__u64 now = ktime(), heard, silent, wait;

	if (!link || !(link->flags & X0_ACTIVE))
		return 0;
	if (now - state->wake_ns > link->late_ns) { /* it was us who did not run */
		state->late++;
		state->floor_ns = now;
	}
	heard = state->answered_ns;
	if ((__s64)(state->floor_ns - heard) > 0)
		heard = state->floor_ns;
	silent = (__s64)(now - heard) > 0 ? now - heard : 0;

	if (silent >= link->dead_ns && state->asked - state->answered_at < link->unanswered) {
		state->late++;
		state->floor_ns = now;
		silent = 0;
	}
	if (silent < link->suspect_ns) {
		if (state->told) {
			state->told = 0;
			tell(*key, X0_EVENT_CLEARED, now, 0);
		}
		wait = link->suspect_ns - silent;
	} else if (silent < link->dead_ns) {
		if (!state->told && !is_dead(link, state)) {
			state->told = 1;
			state->suspected_ns = now;
			state->suspicions++;
			tell(*key, X0_EVENT_SUSPECTED, now, silent);
		}
		wait = link->dead_ns - silent;
	} else {
		if (state->downs == link->forgiven) {
			state->told = 0;
			state->downs++;
			tell(*key, X0_EVENT_DOWN, now, silent);
		}
		wait = link->suspect_ns;
	}
	if (wait < 100000)
		wait = 100000;
	state->wake_ns = now + wait;
	timer_start(&state->timer, wait, 0);
	return 0;
}
