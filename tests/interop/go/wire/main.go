// Speaks mutual TLS by go-spiffe, as it is told on standard input; a line for each thing that
// happens.
//
//	serve ID      "port N"; then, for each client, "met ..." or "refused ...", and echoes lines
//	dial PORT ID  "met ..." or "refused ..."
//	say WORD      over the connection that was dialled; "heard WORD", or "refused ..."
//	hang          up
//
// "met PEER GROUP SERIAL": the peer's ID, the key exchange, the serial number of its certificate.
package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
)

const patience = 10 * time.Second

func pick(svids []*x509svid.SVID) *x509svid.SVID {
	for _, svid := range svids {
		if svid.ID.String() == os.Getenv("X0_ID") {
			return svid
		}
	}
	return nil
}

func refused(err error) { fmt.Println("refused", strings.ReplaceAll(err.Error(), "\n", " ")) }

// met tells of a connection whose handshake is complete.
func met(conn net.Conn) {
	id, err := spiffetls.PeerIDFromConn(conn)
	if err != nil {
		refused(err)
		return
	}
	state := conn.(interface{ ConnectionState() tls.ConnectionState }).ConnectionState()
	fmt.Println("met", id, state.CurveID, state.PeerCertificates[0].SerialNumber)
}

func serve(ctx context.Context, source *workloadapi.X509Source, allowed spiffeid.ID) {
	mode := spiffetls.MTLSServerWithSource(tlsconfig.AuthorizeID(allowed), source)
	listener, err := spiffetls.ListenWithMode(ctx, "tcp", "127.0.0.1:0", mode)
	if err != nil {
		refused(err)
		return
	}
	fmt.Println("port", listener.Addr().(*net.TCPAddr).Port)
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go echo(conn)
		}
	}()
}

func echo(conn net.Conn) {
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	handshake := conn.(interface{ HandshakeContext(context.Context) error }).HandshakeContext
	if err := handshake(ctx); err != nil {
		refused(err)
		return
	}
	met(conn)
	lines := bufio.NewReader(conn)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return
		}
		if _, err := conn.Write([]byte(line)); err != nil {
			return
		}
	}
}

func say(conn net.Conn, word string) {
	conn.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintln(conn, word); err != nil {
		refused(err)
		return
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		refused(err)
		return
	}
	fmt.Print("heard ", line)
}

func main() {
	ctx := context.Background()
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithDefaultX509SVIDPicker(pick))
	if err != nil {
		refused(err)
		return
	}
	fmt.Println("ready")
	var dialled net.Conn
	for told := bufio.NewScanner(os.Stdin); told.Scan(); {
		words := strings.Fields(told.Text())
		switch words[0] {
		case "serve":
			serve(ctx, source, spiffeid.RequireFromString(words[1]))
		case "dial":
			allowed := tlsconfig.AuthorizeID(spiffeid.RequireFromString(words[2]))
			dialled, err = spiffetls.DialWithMode(ctx, "tcp", "127.0.0.1:"+words[1],
				spiffetls.MTLSClientWithSource(allowed, source))
			if err != nil {
				refused(err)
			} else {
				met(dialled)
			}
		case "say":
			say(dialled, words[1])
		case "hang":
			dialled.Close()
		}
	}
}
