// Handshakes of Go's crypto/tls, both ends in one process: mutual TLS 1.3 with P-256 certificates
// and one CA, one byte from the server, over loopback TCP. Prints one line of JSON.
//
//	go run bench/handshake.go COUNT
package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"io"
	"log"
	"math/big"
	"net"
	"net/url"
	"os"
	"slices"
	"strconv"
	"syscall"
	"time"
)

func must[T any](value T, err error) T {
	if err != nil {
		log.Fatal(err)
	}
	return value
}

func issue(serial int64, path string, ca *x509.Certificate, caKey *ecdsa.PrivateKey) (tls.Certificate, *ecdsa.PrivateKey) {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	made := &x509.Certificate{
		SerialNumber:          big.NewInt(serial),
		Subject:               pkix.Name{CommonName: path},
		NotBefore:             time.Now().Add(-time.Minute),
		NotAfter:              time.Now().Add(time.Hour),
		BasicConstraintsValid: true,
		IsCA:                  ca == nil,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:                  []*url.URL{must(url.Parse("spiffe://bench.mesh" + path))},
	}
	signer, parent := caKey, ca
	if ca == nil {
		made.KeyUsage, made.ExtKeyUsage = x509.KeyUsageCertSign, nil
		signer, parent = key, made
	}
	der := must(x509.CreateCertificate(rand.Reader, made, parent, key.Public(), signer))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, key
}

func cpu() time.Duration {
	var used syscall.Rusage
	must(0, syscall.Getrusage(syscall.RUSAGE_SELF, &used))
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func main() {
	count := must(strconv.Atoi(os.Args[1]))
	root, rootKey := issue(1, "", nil, nil)
	ca := must(x509.ParseCertificate(root.Certificate[0]))
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	server, _ := issue(2, "/server", ca, rootKey)
	client, _ := issue(3, "/client", ca, rootKey)
	verify := func(raw [][]byte, _ [][]*x509.Certificate) error {
		leaf, err := x509.ParseCertificate(raw[0])
		if err == nil {
			_, err = leaf.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
		}
		return err
	}
	groups := []tls.CurveID{tls.X25519MLKEM768, tls.X25519}
	listener := must(tls.Listen("tcp", "127.0.0.1:0", &tls.Config{
		Certificates: []tls.Certificate{server}, ClientAuth: tls.RequireAnyClientCert,
		VerifyPeerCertificate: verify, MinVersion: tls.VersionTLS13, CurvePreferences: groups,
		SessionTicketsDisabled: true,
	}))
	go func() {
		for {
			conn := must(listener.Accept())
			go func(conn net.Conn) {
				conn.Write([]byte("!"))
				io.Copy(io.Discard, conn)
				conn.Close()
			}(conn)
		}
	}()
	config := &tls.Config{
		Certificates: []tls.Certificate{client}, InsecureSkipVerify: true,
		VerifyPeerCertificate: verify, MinVersion: tls.VersionTLS13, CurvePreferences: groups,
	}
	taken := []float64{}
	var began time.Duration
	var group tls.CurveID
	for number := range count + 20 {
		if number == 20 {
			began, taken = cpu(), nil
		}
		start := time.Now()
		conn := must(tls.Dial("tcp", listener.Addr().String(), config))
		must(io.ReadFull(conn, make([]byte, 1)))
		taken = append(taken, float64(time.Since(start).Microseconds())/1000)
		group = conn.ConnectionState().CurveID
		conn.Close()
	}
	spent := cpu() - began
	slices.Sort(taken)
	json.NewEncoder(os.Stdout).Encode(map[string]any{
		"median_ms": taken[count/2], "p95_ms": taken[count*95/100],
		"cpu_ms": float64(spent.Microseconds()) / 1000 / float64(count), "group": group.String(),
	})
}
