package pagein

import (
	"context"
	"errors"
	"slices"
	"time"

	"vmav.dev/vmav/internal/introspect"
	"vmav.dev/vmav/internal/source"
)

// ask requests at most room of the pages and waits for the outcome, for the time of a slice
// or until limit. asked is how many it requested. applied are the pages for which a thread
// took a fault, and left are the pages that were not present before. Pages that must not be
// requested again are added to done.
func (p *Pager) ask(ctx context.Context, t *Target, id introspect.Identity, vas []uint64, room int, done map[uint64]bool,
	limit time.Time) (asked int, applied, left []uint64, err error) {
	timeout := max(min(time.Until(limit), slice), time.Millisecond)
	pending := make(map[uint64]uint64) // pages by cookie
	left = slices.Clone(vas)
	for _, va := range vas {
		if done[va] || len(pending) == room {
			continue
		}
		if va < t.VAD.Start || va > t.VAD.End {
			done[va] = true
			continue
		}
		guards, in, err := p.guest.PageInGuards(id, va)
		if err != nil {
			if err := ended(ctx, err); err != nil {
				p.cancel(pending)
				return 0, nil, vas, err
			}
			done[va] = true
			continue
		}
		if in {
			left = slices.DeleteFunc(left, func(v uint64) bool { return v == va })
			continue
		}
		p.cookie++
		a := source.Action{Kind: source.ActionPageIn, Cookie: p.cookie, DTB: id.DTB, UserDTB: t.Process.UserDTB, Timeout: timeout,
			Address: va, ErrorCode: source.FaultUser, Guards: guards}
		if err := p.ctl.Do(&a); err != nil {
			p.cancel(pending)
			return 0, nil, vas, err
		}
		pending[p.cookie] = va
	}
	asked = len(pending)
	applied, err = p.outcomes(ctx, pending, timeout+slack)
	for _, va := range applied {
		done[va] = true
	}
	return asked, applied, left, err
}

// outcomes waits until no action is pending and returns the pages for which a fault was
// taken.
func (p *Pager) outcomes(ctx context.Context, pending map[uint64]uint64, within time.Duration) (applied []uint64, err error) {
	wctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	for len(pending) > 0 {
		ev, err := p.ctl.Event(wctx)
		if err == nil && ev.Kind == source.EventGone {
			err = source.ErrGone
		}
		if err != nil {
			p.cancel(pending)
			if ctx.Err() == nil && errors.Is(err, context.DeadlineExceeded) {
				return applied, nil // the module has lost them
			}
			return applied, err
		}
		va, ours := pending[ev.Cookie]
		if !ours {
			continue // of an earlier batch that was cancelled
		}
		delete(pending, ev.Cookie)
		if ev.Kind == source.EventApplied {
			applied = append(applied, va)
		}
	}
	return applied, nil
}

// cancel cancels the pending actions. If that fails, the session has ended.
func (p *Pager) cancel(pending map[uint64]uint64) {
	for cookie := range pending {
		if _, err := p.ctl.Cancel(cookie); err != nil {
			return
		}
	}
}

// await waits until the pages for which a fault was taken are present, or until limit, and
// returns the rest of left.
func (p *Pager) await(ctx context.Context, id introspect.Identity, asked, left []uint64, limit time.Time) ([]uint64, error) {
	for wait := time.Millisecond; len(asked) > 0; wait = min(2*wait, 20*time.Millisecond) {
		var missing []uint64
		for _, va := range asked {
			_, in, err := p.guest.PageInGuards(id, va)
			if err != nil {
				if err := ended(ctx, err); err != nil {
					return left, err
				}
				continue // the entry says something else now; do not request it again
			}
			if !in {
				missing = append(missing, va)
				continue
			}
			left = slices.DeleteFunc(left, func(v uint64) bool { return v == va })
		}
		asked = missing
		if len(asked) == 0 || !time.Now().Before(limit) {
			break
		}
		select {
		case <-ctx.Done():
			return left, ctx.Err()
		case <-time.After(wait):
		}
	}
	return left, nil
}
