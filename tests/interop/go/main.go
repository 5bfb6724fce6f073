// Watches X.509 contexts with go-spiffe, and has a JWT-SVID fetched and judged; a line per event.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

type watcher struct{}

func (watcher) OnX509ContextUpdate(c *workloadapi.X509Context) {
	svid := c.DefaultSVID()
	bundle, _ := c.Bundles.GetX509BundleForTrustDomain(svid.ID.TrustDomain())
	fmt.Println("update", len(c.SVIDs), svid.ID, svid.Certificates[0].SerialNumber,
		len(bundle.X509Authorities()))
}

func (watcher) OnX509ContextWatchError(err error) { fmt.Println("error", err) }

func token(ctx context.Context, client *workloadapi.Client) error {
	svid, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "db"})
	if err != nil {
		return err
	}
	if _, err = client.ValidateJWTSVID(ctx, svid.Marshal(), "db"); err != nil {
		return err
	}
	bundles, err := client.FetchJWTBundles(ctx)
	if err != nil {
		return err
	}
	_, err = jwtsvid.ParseAndValidate(svid.Marshal(), bundles, []string{"db"})
	fmt.Println("jwt", svid.ID)
	return err
}

func main() {
	ctx := context.Background()
	client, err := workloadapi.New(ctx)
	if err != nil {
		fmt.Println("error", err)
		os.Exit(1)
	}
	if err := token(ctx, client); err != nil {
		fmt.Println("error", err)
	}
	client.WatchX509Context(ctx, watcher{})
}
