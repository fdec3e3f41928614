/* http/listen.c - name to address to listening socket.
 *
 * Idea:    the socket is made here, not by libmicrohttpd, so that a taken port gets a sentence that helps.
 * Always:  close-on-exec; one socket. */
#include "http/internal.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <unistd.h>

static bool is_loopback(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET) return ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24 == 127;
    return a->sa_family == AF_INET6 && IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)a)->sin6_addr);
}

static bool is_wildcard(const struct sockaddr *a)
{
    if (a->sa_family == AF_INET) return ((const struct sockaddr_in *)a)->sin_addr.s_addr == htonl(INADDR_ANY);
    return a->sa_family == AF_INET6 && IN6_IS_ADDR_UNSPECIFIED(&((const struct sockaddr_in6 *)a)->sin6_addr);
}

/* A socket that listens on one address; -1 with errno. */
static int listen_on(const struct addrinfo *ai)
{
    if (imp_sys_should_fail()) {
        errno = EMFILE;
        return -1;
    }
    int fd = socket(ai->ai_family, ai->ai_socktype, ai->ai_protocol), on = 1;
    if (fd < 0) return -1;
    (void)fcntl(fd, F_SETFD, FD_CLOEXEC);
    (void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
        bind(fd, ai->ai_addr, ai->ai_addrlen) < 0 || listen(fd, 512) < 0) {
        int e = errno;
        close(fd);
        errno = e;
        return -1;
    }
    return fd;
}

static uint16_t port_of(int fd)
{
    struct sockaddr_storage a;
    socklen_t n = sizeof a;
    if (getsockname(fd, (struct sockaddr *)&a, &n) < 0) return 0;
    return ntohs(a.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&a)->sin6_port
                                         : ((struct sockaddr_in *)&a)->sin_port);
}

static imp_status listen_error(const char *host, uint16_t port, int e, imp_error *err)
{
    if (e == EADDRINUSE)
        return imp_fail_field(
            err, IMP_IO, "port",
            "port %u on %s is in use by another program: stop that one, or choose another port with "
            "--port (0 takes a free one)",
            port, host);
    if (e == EACCES)
        return imp_fail_field(err, IMP_IO, "port",
                              "port %u is reserved for the system: choose one above 1023 with --port", port);
    if (e == EADDRNOTAVAIL)
        return imp_fail_field(err, IMP_IO, "host",
                              "%s is no address of this machine: choose another with --host", host);
    return imp_fail(err, IMP_IO, "cannot listen on %s port %u: %s", host, port, strerror(e));
}

imp_status http_listen(const char *host, uint16_t port, int *out_fd, uint16_t *out_port, bool *out_loopback,
                       bool *out_wildcard, imp_error *err)
{
    char service[8];
    snprintf(service, sizeof service, "%u", port);
    struct addrinfo hint = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV},
                    *list = NULL;
    /* "localhost" may have two addresses; the older one is what clients try and the page prints */
    if (strcmp(host, "localhost") == 0) host = "127.0.0.1";
    int rc = getaddrinfo(host, service, &hint, &list);
    if (rc != 0 || !list)
        return imp_fail_field(err, IMP_INVALID, "host",
                              "'%.100s' is no address or name that this machine knows", host);
    int fd = listen_on(list), e = errno;
    if (fd >= 0) {
        *out_loopback = is_loopback(list->ai_addr);
        *out_wildcard = is_wildcard(list->ai_addr);
        *out_port = port_of(fd);
        *out_fd = fd;
    }
    freeaddrinfo(list);
    return fd >= 0 ? IMP_OK : listen_error(host, port, e, err);
}
